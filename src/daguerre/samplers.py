"""Owns the names of the schedulers (AUTOMATIC1111: samplers): which diffusers class and options each name means."""

import msgspec


class Sampler(msgspec.Struct, frozen=True):
    """A diffusers scheduler class, its options, and AUTOMATIC1111's name for the pair."""

    scheduler: str
    label: str
    options: dict[str, bool | str | float] = {}


# Schedulers that integrate a diffusion process with betas: Stable Diffusion 1.x, 2.x, XL and their kin.
DIFFUSION: dict[str, Sampler] = {
    "ddim": Sampler("DDIMScheduler", "DDIM"),
    "ddpm": Sampler("DDPMScheduler", "DDPM"),
    "dpmpp_2m": Sampler("DPMSolverMultistepScheduler", "DPM++ 2M"),
    "dpmpp_2m_karras": Sampler("DPMSolverMultistepScheduler", "DPM++ 2M Karras", {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": Sampler("DPMSolverMultistepScheduler", "DPM++ 2M SDE", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2s": Sampler("DPMSolverSinglestepScheduler", "DPM++ 2S"),
    "euler": Sampler("EulerDiscreteScheduler", "Euler"),
    "euler_a": Sampler("EulerAncestralDiscreteScheduler", "Euler a"),
    "euler_karras": Sampler("EulerDiscreteScheduler", "Euler Karras", {"use_karras_sigmas": True}),
    "heun": Sampler("HeunDiscreteScheduler", "Heun"),
    "kdpm2": Sampler("KDPM2DiscreteScheduler", "DPM2"),
    "kdpm2_a": Sampler("KDPM2AncestralDiscreteScheduler", "DPM2 a"),
    "lcm": Sampler("LCMScheduler", "LCM"),
    "pndm": Sampler("PNDMScheduler", "PLMS"),
    "unipc": Sampler("UniPCMultistepScheduler", "UniPC"),
}

# Schedulers that integrate a rectified flow: Stable Diffusion 3, FLUX and what came after them.
FLOW: dict[str, Sampler] = {
    "euler": Sampler("FlowMatchEulerDiscreteScheduler", "Euler"),
}


def samplers_for(scheduler_class: str) -> dict[str, Sampler]:
    """The samplers that can replace a model's own scheduler, given the class name that the model came with."""
    return FLOW if scheduler_class.startswith("FlowMatch") else DIFFUSION
