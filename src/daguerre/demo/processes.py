"""Owns the processes of a training: what each one sets up, from the command's options, before it trains."""

import argparse
from pathlib import Path

import diffusers
import msgspec
import torch
import torch.distributed as dist
import torch.multiprocessing
import transformers
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from daguerre.demo.autoencoder import train_autoencoder
from daguerre.demo.export import export
from daguerre.demo.networks import Networks, Shape, build_networks, load_networks
from daguerre.demo.tokenizer import corpus, train_tokenizer
from daguerre.demo.training import Plan, Trainer, run


def train(options: argparse.Namespace) -> None:
    """Train in one process here, or in several that meet in the work folder."""
    (options.out / "rendezvous").unlink(missing_ok=True)
    if options.processes == 1:
        _train(0, options)
    else:
        torch.multiprocessing.start_processes(_train, (options,), options.processes, start_method="spawn")


def hush() -> None:
    """Keep the libraries' notices and progress bars out of the output."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def _train(rank: int, options: argparse.Namespace) -> None:
    hush()
    torch.set_num_threads(options.threads)
    world = options.processes
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{options.out / 'rendezvous'}", rank=rank, world_size=world)
    torch.manual_seed(options.seed or 0)
    source = options.init or options.out / "start"
    if not options.init:
        _prepare(source, options, rank)
    tokenizer = CLIPTokenizer.from_pretrained(source / "tokenizer")
    vae = AutoencoderKL.from_pretrained(source / "vae", dtype=torch.float32).eval().requires_grad_(False)
    networks = load_networks(str(source)) if options.init else build_networks(tokenizer, Shape())
    trainer = Trainer(networks, tokenizer, Plan(), rank, world)
    checkpoint = options.out / "checkpoint.safetensors"
    if checkpoint.exists():
        trainer.load(checkpoint)
    trainer.plan = _replan(trainer.plan, options)
    if options.hurry:
        trainer.plan = trainer.plan.hurried(trainer.seen, options.hurry)

    def write(averaged: Networks) -> None:
        export(options.out / "model", averaged, tokenizer, vae)

    run(trainer, options.out, vae, export=write, minutes=options.minutes, save_every=options.save_every)
    if world > 1:
        dist.destroy_process_group()


def _prepare(folder: Path, options: argparse.Namespace, rank: int) -> None:
    """Train tokenizer and autoencoder into a folder, unless they are there."""
    if rank == 0 and not (folder / "tokenizer").exists():
        train_tokenizer(corpus(options.seed or 0)).save_pretrained(folder / "tokenizer")
    if not (folder / "vae").exists():
        vae = train_autoencoder(options.out, options.seed or 0, options.autoencoder_steps, rank, options.processes)
        if rank == 0:
            vae.save_pretrained(folder / "vae")
    if options.processes > 1:
        dist.barrier()


def _replan(plan: Plan, options: argparse.Namespace) -> Plan:
    """Let what the command says replace what the checkpoint planned."""
    given = {name: getattr(options, name, None) for name in Plan.__struct_fields__}
    return msgspec.structs.replace(plan, **{name: value for name, value in given.items() if value is not None})
