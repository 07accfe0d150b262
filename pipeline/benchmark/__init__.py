"""The benchmark: speed and memory of our training and rendering on one device, beside those of the diffusers scripts.

bench_plan.py            the plan: device, settings, rows      bench.py            the measurement of all rows
workloads.py             what each row executes                bench_result.py     the rows and their JSON
dreambooth_lora_peer.py  the peer's training                   peer_rendering.py   the peer's rendering
batch_rendering.py       rendering with the bare base model    shared_weights.py   copies of a module for the peer
step_clock.py            seconds, extrapolated to all steps    flop_count.py       FLOPs
device_peak.py           the device's peak rate                step_profile.py     a profile, operator by operator
published_shapes.py      Stable Diffusion with random weights
"""
