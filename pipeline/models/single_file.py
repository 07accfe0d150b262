"""Models in one file, as they are found on Civitai: told for what they are, with the command that converts them.

diffusers can read some of them, but not offline: it gets the tokenizer and the configuration, which the file lacks,
from the Hub.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ...core.errors import InvalidInput
from ...core.weights.files import WEIGHTS, is_lfs_pointer, read_header
from .folder import CHECKPOINTS, ENTRY_FILE, PICKLES, Role, weights_of

_SD, _XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
_KINDS = (  # what is part of a weight's name, and the class that makes a folder of such a file, if we can use that
    ("lora_unet_", "a LoRA", ""),
    (".lora_A.", "a LoRA", ""),
    (".lora_down.", "a LoRA", ""),
    ("double_blocks.", "a FLUX checkpoint", ""),
    ("joint_blocks.", "a Stable Diffusion 3 checkpoint", ""),
    ("conditioner.embedders.1.", "a Stable Diffusion XL checkpoint", _XL),
    ("cond_stage_model.model.", "a Stable Diffusion 2 checkpoint", _SD),
    ("cond_stage_model.transformer.", "a Stable Diffusion 1 checkpoint", _SD),
)


def is_single_file(name: str) -> bool:
    """Whether a model's name is that of a model in one file."""
    return name.lower().endswith((*CHECKPOINTS, *PICKLES))


def single_file_error(file: Path, name: str, role: Role) -> InvalidInput:
    """What to say about a file where a folder is wanted.

    Args:
        name: the model's name in the run spec.
    """
    what = f"{role} {name!r}"
    if (file.parent / ENTRY_FILE[role]).is_file():
        return InvalidInput(f"{what} is one file of a model", fix=f"give its folder, {str(file.parent)!r}")
    if not is_single_file(name):
        return InvalidInput(f"{what} is a file, not a folder", fix="give the folder that `save_pretrained` wrote")
    if is_lfs_pointer(file):
        fix = "run `git lfs install` and `git lfs pull` in the repository's folder"
        return InvalidInput(f"{what} is a Git LFS pointer, not the file itself", fix=fix)
    if not name.lower().endswith(WEIGHTS):
        fix = "reading a pickle can run any code; give a model in safetensors files"
        return InvalidInput(f"{what} is one file, and a pickle", fix=fix)
    if role == "scorer":
        return InvalidInput(f"{what} is one file", fix="give the folder that `CLIPModel.save_pretrained` wrote")
    try:
        with weights_of(what, ""):
            names = list(read_header(file))
    except InvalidInput as error:
        return error
    for mark, kind, pipeline in _KINDS:
        if any(mark in weight for weight in names):
            if pipeline:
                return InvalidInput(f"{what} is one file, {kind}", fix=_conversion(str(file), pipeline))
            fix = "give a Stable Diffusion 1.x, 2.x or XL model: only those can be personalized"
            return InvalidInput(f"{what} is {kind}", fix=fix)
    return InvalidInput(f"{what} is one file", fix=_conversion(str(file)))


def single_file_at(uri: str, role: str) -> InvalidInput:
    """As `single_file_error`, for a file in an object store, which is not fetched to see what it is."""
    if role == "base_model" and uri.lower().endswith(WEIGHTS):
        fix = f"download it; {_conversion(uri.rpartition('/')[2])} after uploading that"
        return InvalidInput(f"{role} {uri!r} is one file", fix=fix)
    return InvalidInput(f"{role} {uri!r} is one file", fix="give the address of a folder that `save_pretrained` wrote")


def _conversion(name: str, pipeline: str = "") -> str:
    """The command that makes a folder of a single file; with no `pipeline`, whose class is not known."""
    folder = str(PurePosixPath(name).with_suffix(""))
    read = f"from diffusers import {pipeline or _SD} as P; P.from_single_file({name!r}).save_pretrained({folder!r})"
    other = "" if pipeline else f" ({_XL} for an XL model)"
    return f'convert it once, while online, with `python -c "{read}"`{other}, and give the folder {folder!r}'
