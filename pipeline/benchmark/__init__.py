"""How fast training and rendering are on one device, beside what people use today, measured in one process.

bench_plan.py, bench.py    what is measured, and the run: rows in turn, several rounds, seconds, memory, shares
contestants.py             what each row does, and how its seconds scale to a concept or an image
dreambooth_lora_peer.py    the peer's training loop           peer_rendering.py    the peer's rendering
batch_rendering.py         ours                               twin.py              two modules, one set of weights
published_shapes.py        Stable Diffusion with random weights
step_clock.py, device_peak.py, flop_count.py    the instruments
bench_result.py            the rows and their JSON            step_profile.py      where a step's time goes
"""
