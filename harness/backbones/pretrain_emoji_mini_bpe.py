"""Byte-pair merges of the embedded backbone's tokenizer, learnt from icon and emoji names."""

import gzip
from collections import Counter
from itertools import pairwise
from pathlib import Path

from harness.backbones import pretrain_emoji_mini_data as data
from harness.tasks.datasets.emoji.build import read_style


def word_counts(work: Path) -> Counter:
    """Counts of the words of all captions, with emoji words and template words made frequent."""
    counts: Counter[str] = Counter()
    for name in data.icon_sets(work):
        weight = 20 if name in data.EMOJI_STYLES else 1
        for _, captions, _ in data.set_records(name, read_style(work, name)):
            for caption in captions:
                counts.update(dict.fromkeys(caption.split(), weight))
    counts.update(dict.fromkeys(data.emoji_words(work), 40))
    for template in data.TEMPLATES:
        counts.update(dict.fromkeys(data.caption_words(template), 10_000))
    return counts


def learn_merges(counts: Counter, number: int) -> list[tuple[str, str]]:
    """Byte-pair merges of lower-case ASCII words, the most frequent pair first.

    A pair whose joined form is a token already is passed over, since open_clip's tokenizer
    numbers its tokens by their text.
    """
    words: list[tuple[list[str], int]] = [
        ([*word[:-1], word[-1] + "</w>"], count)
        for word, count in sorted(counts.items())
        if word.isascii() and count > 1
    ]
    merges: list[tuple[str, str]] = []
    tokens: set[str] = set()
    while len(merges) < number:
        pairs: Counter[tuple[str, str]] = Counter()
        for pieces, count in words:
            for pair in pairwise(pieces):
                pairs[pair] += count
        unseen = [pair for pair in pairs if "".join(pair) not in tokens]
        if not unseen:
            break
        best = max(unseen, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        tokens.add("".join(best))
        joined = "".join(best)
        words = [
            (merge_pair(pieces, best) if joined in "".join(pieces) else pieces, count)
            for pieces, count in words
            if len(pieces) > 1
        ]
    return merges


def merge_pair(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of a pair in a word's pieces."""
    merged, index = [], 0
    while index < len(pieces):
        if tuple(pieces[index : index + 2]) == pair:
            merged.append(pieces[index] + pieces[index + 1])
            index += 2
        else:
            merged.append(pieces[index])
            index += 1
    return merged


def write_merges(merges: list[tuple[str, str]], path: Path) -> None:
    """Write merges in open_clip's file format: a heading, then one pair a line."""
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
