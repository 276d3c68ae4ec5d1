"""Owns the names of the schedulers (AUTOMATIC1111: samplers): which diffusers class and options each name means."""

import msgspec


class Sampler(msgspec.Struct, frozen=True):
    """A diffusers scheduler class, its options, and AUTOMATIC1111's name for the pair."""

    scheduler: str
    label: str
    options: dict[str, bool | str | float] = {}


_KARRAS: dict[str, bool | str | float] = {"use_karras_sigmas": True}
_EXPONENTIAL: dict[str, bool | str | float] = {"use_exponential_sigmas": True}
_SDE: dict[str, bool | str | float] = {"algorithm_type": "sde-dpmsolver++"}

# Schedulers that integrate a diffusion process with betas: Stable Diffusion 1.x, 2.x, XL and their kin.
DIFFUSION: dict[str, Sampler] = {
    "ddim": Sampler("DDIMScheduler", "DDIM"),
    "ddpm": Sampler("DDPMScheduler", "DDPM"),
    "dpmpp_2m": Sampler("DPMSolverMultistepScheduler", "DPM++ 2M"),
    "dpmpp_2m_exponential": Sampler("DPMSolverMultistepScheduler", "DPM++ 2M Exponential", _EXPONENTIAL),
    "dpmpp_2m_karras": Sampler("DPMSolverMultistepScheduler", "DPM++ 2M Karras", _KARRAS),
    "dpmpp_2m_sde": Sampler("DPMSolverMultistepScheduler", "DPM++ 2M SDE", _SDE),
    "dpmpp_2m_sde_exponential": Sampler("DPMSolverMultistepScheduler", "DPM++ 2M SDE Exponential", _SDE | _EXPONENTIAL),
    "dpmpp_2m_sde_karras": Sampler("DPMSolverMultistepScheduler", "DPM++ 2M SDE Karras", _SDE | _KARRAS),
    "dpmpp_2s": Sampler("DPMSolverSinglestepScheduler", "DPM++ 2S"),
    "dpmpp_2s_karras": Sampler("DPMSolverSinglestepScheduler", "DPM++ 2S Karras", _KARRAS),
    "euler": Sampler("EulerDiscreteScheduler", "Euler"),
    "euler_a": Sampler("EulerAncestralDiscreteScheduler", "Euler a"),
    "euler_exponential": Sampler("EulerDiscreteScheduler", "Euler Exponential", _EXPONENTIAL),
    "euler_karras": Sampler("EulerDiscreteScheduler", "Euler Karras", _KARRAS),
    "heun": Sampler("HeunDiscreteScheduler", "Heun"),
    "heun_karras": Sampler("HeunDiscreteScheduler", "Heun Karras", _KARRAS),
    "kdpm2": Sampler("KDPM2DiscreteScheduler", "DPM2"),
    "kdpm2_a": Sampler("KDPM2AncestralDiscreteScheduler", "DPM2 a"),
    "kdpm2_a_karras": Sampler("KDPM2AncestralDiscreteScheduler", "DPM2 a Karras", _KARRAS),
    "kdpm2_karras": Sampler("KDPM2DiscreteScheduler", "DPM2 Karras", _KARRAS),
    "lcm": Sampler("LCMScheduler", "LCM"),
    "pndm": Sampler("PNDMScheduler", "PLMS"),
    "unipc": Sampler("UniPCMultistepScheduler", "UniPC"),
    "unipc_karras": Sampler("UniPCMultistepScheduler", "UniPC Karras", _KARRAS),
}

# Schedulers that integrate a rectified flow: Stable Diffusion 3, FLUX and what came after them.
FLOW: dict[str, Sampler] = {
    "euler": Sampler("FlowMatchEulerDiscreteScheduler", "Euler"),
    "euler_exponential": Sampler("FlowMatchEulerDiscreteScheduler", "Euler Exponential", _EXPONENTIAL),
    "euler_karras": Sampler("FlowMatchEulerDiscreteScheduler", "Euler Karras", _KARRAS),
}


def samplers_for(scheduler_class: str) -> dict[str, Sampler]:
    """The samplers that can replace a model's own scheduler, given the class name that the model came with."""
    return FLOW if scheduler_class.startswith("FlowMatch") else DIFFUSION
