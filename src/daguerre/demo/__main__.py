"""Owns the command `python -m daguerre.demo`: train the embedded model or its LoRAs, judge, or draw lessons."""

import argparse
import math
import random
import sys
from pathlib import Path

import msgspec

from daguerre.demo.gate import hold, lay_out
from daguerre.demo.ip_gate import hold_likeness
from daguerre.demo.ip_training import IpPlan, train_ip_adapter
from daguerre.demo.lora_training import LoraPlan, train_lora
from daguerre.demo.processes import hush, train
from daguerre.demo.scene import describe_scene, draw_scene, sample_scene
from daguerre.demo.subjects import SUBJECTS
from daguerre.demo.training import Plan


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m daguerre.demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    learn = commands.add_parser("train", help="train, or go on from the checkpoint in --out")
    learn.add_argument("--out", type=Path, required=True, help="the work folder")
    learn.add_argument("--init", type=Path, help="a diffusers folder to start from; its tokenizer and VAE stay")
    learn.add_argument("--processes", type=int, default=2)
    learn.add_argument("--threads", type=int, default=1, help="of each process")
    learn.add_argument("--minutes", type=float, default=math.inf, help="stop then; the same command goes on later")
    learn.add_argument("--save-every", type=float, default=300, help="seconds between checkpoints")
    learn.add_argument("--hurry", type=int, help="end after so many more samples, the rate falling from now on")
    learn.add_argument("--autoencoder-steps", type=int, default=2200, help="without --init")
    for name, kind in Plan.__annotations__.items():
        if kind in (int, float):
            first = getattr(Plan(), name)
            learn.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"{first}, or as the checkpoint says")
    lora = commands.add_parser("train-lora", help="train a LoRA, or go on from the checkpoint in --out")
    lora.add_argument("name", choices=SUBJECTS)
    lora.add_argument("--out", type=Path, required=True, help="the work folder")
    lora.add_argument("--base", type=Path, default=Path("weights/demo-xl"))
    lora.add_argument("--write", type=Path, help="the LoRA's file; OUT/NAME.safetensors")
    lora.add_argument("--threads", type=int, default=1)
    lora.add_argument("--stop", type=int, help="after so many samples; the same command without it goes on")
    for field in msgspec.structs.fields(LoraPlan):
        if field.type in (int, float):
            lora.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default)
    look = commands.add_parser("train-ip-adapter", help="train an IP-Adapter, or go on from the checkpoint in --out")
    look.add_argument("--out", type=Path, required=True, help="the work folder")
    look.add_argument("--base", type=Path, default=Path("weights/demo-xl"))
    look.add_argument("--threads", type=int, default=1)
    look.add_argument("--stop", type=int, help="after so many samples; the same command without it goes on")
    for field in msgspec.structs.fields(IpPlan):
        if field.type in (int, float):
            look.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default)
    gate = commands.add_parser("gate", help="judge an exported folder")
    gate.add_argument("weights", type=Path)
    gate.add_argument("--sheet", type=Path, help="where a PNG of what was painted goes")
    gate.add_argument("--seeds", type=int, default=5)
    gate.add_argument("--steps", type=int, default=20)
    likeness = commands.add_parser("gate-ip-adapter", help="judge the IP-Adapter in a folder")
    likeness.add_argument("folder", type=Path)
    likeness.add_argument("--base", type=Path, default=Path("weights/demo-xl"))
    likeness.add_argument("--sheet", type=Path, help="where a PNG of references and pictures goes")
    likeness.add_argument("--count", type=int, default=40)
    likeness.add_argument("--side", type=int, default=256)
    likeness.add_argument("--steps", type=int, default=12)
    show = commands.add_parser("draw", help="lay out a sheet of what the model learns from")
    show.add_argument("--out", type=Path, required=True, help="a PNG")
    show.add_argument("--count", type=int, default=60)
    show.add_argument("--seed", type=int, default=0)
    show.add_argument("--lora", choices=SUBJECTS, help="what a LoRA learns from")
    return parser


def _draw(out: Path, count: int, seed: int, lora: str | None) -> None:
    """Lay out scenes with a caption each."""
    scenes = [sample_scene(seed * 10**6 + place) for place in range(count)]
    draw, describe = (SUBJECTS[lora].draw, SUBJECTS[lora].describe) if lora else (draw_scene, describe_scene)
    choice = random.Random(seed)
    lay_out([draw(scene) for scene in scenes], [describe(scene, choice) for scene in scenes]).save(out)


def _train_lora(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    plan = LoraPlan(**{name: getattr(options, name) for name in LoraPlan.__struct_fields__ if hasattr(options, name)})
    write = options.write or options.out / f"{options.name}.safetensors"
    train_lora(options.name, options.base, options.out, write, plan, options.threads, options.stop)


def _train_ip_adapter(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    plan = IpPlan(**{name: getattr(options, name) for name in IpPlan.__struct_fields__ if hasattr(options, name)})
    train_ip_adapter(options.base, options.out, plan, options.threads, options.stop)


def main() -> None:
    """Run one command; a gate that is not passed exits with 1."""
    options = _parser().parse_args()
    hush()
    if options.command == "train":
        options.out.mkdir(parents=True, exist_ok=True)
        options.out = options.out.resolve()
        train(options)
    elif options.command == "train-lora":
        _train_lora(options)
    elif options.command == "train-ip-adapter":
        _train_ip_adapter(options)
    elif options.command == "gate":
        findings = hold(options.weights, options.seeds, options.steps, options.sheet)
        sys.exit(not findings.is_passed)
    elif options.command == "gate-ip-adapter":
        found = hold_likeness(options.base, options.folder, options.count, options.side, options.steps, options.sheet)
        sys.exit(not found.is_passed)
    else:
        _draw(options.out, options.count, options.seed, options.lora)


if __name__ == "__main__":
    main()
