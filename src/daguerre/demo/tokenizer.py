"""Owns the tokenizer: byte-level BPE in CLIPTokenizer's format, its merges learned from the captions.

All 256 bytes are tokens, within a word and at its end, so any Unicode prompt has tokens.
"""

import json
import random
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from daguerre.demo.captions import STRANGERS
from daguerre.demo.scene import describe_scene, sample_scene

START, END = "<|startoftext|>", "<|endoftext|>"
COMMON = (  # words that people write though no caption has them, mostly for what they do not want
    "low quality worst ugly bad text watermark cropped out of focus jpeg artifacts deformed river road winter summer "
    "autumn spring abstract pattern style light dark old new young small world"
)


def corpus(seed: int, scenes: int = 12_000) -> list[str]:
    """Write captions to learn merges from: two for each scene."""
    choice = random.Random(seed)
    captions = [describe_scene(sample_scene(seed * 10**9 + place), choice) for place in range(scenes) for _ in (0, 1)]
    return captions + [" ".join([COMMON, *STRANGERS])] * 50


def train_tokenizer(captions: Iterable[str], size: int = 1059) -> CLIPTokenizer:
    """Learn a tokenizer of at most so many tokens."""
    clip = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer  # words as CLIP will cut them
    trainer = trainers.BpeTrainer(vocab_size=4 * size, min_frequency=2, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(captions, trainer)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters)])  # all of them, met or not
    merges = []
    for one, other in json.loads(learner.to_str())["model"]["merges"]:
        if len(vocabulary) + 2 >= size:
            break
        merges.append((one, other))
        vocabulary[one + other] = None
    tokens = {word: number for number, word in enumerate([*vocabulary, START, END])}
    return CLIPTokenizer(vocab=tokens, merges=merges, model_max_length=77)
