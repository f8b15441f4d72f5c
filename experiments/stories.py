"""Text made by rules, for models that learn in a minute what has to be looked up far back.

A story has a hero, a town, an animal and a thing, drawn when it begins. Its sentences are drawn from a few forms and
mention one or two of them, so after the first mention each of these words is known to whoever remembers the story, and
to nobody else: `RECALLED` says which tokens they are. Everything between them is easy.
"""

import numpy as np
import torch
from learning import Batch

_LISTS = {
    "HERO": "anna bruno clara david elena felix greta hugo irene jonas karla leon maria nils olga paul rosa simon "
    "tilda viktor wanda xaver yara zeno",
    "TOWN": "aarhus berne calais dover essen faro ghent hull ivrea jena kiel lyon malmo nice oslo porto quimper riga "
    "siena turin utrecht vienna ypres zurich",
    "ANIMAL": "ape bear cat dog eagle fox goat hare ibis jay kite lion mole newt owl pony quail raven seal toad "
    "urial viper wolf yak",
    "THING": "axe bell cup drum egg flute globe harp ink jug key lamp map nail oar pipe quilt ring sword tent urn "
    "vase whip yarn",
}
_FORMS = [
    "HERO lived in TOWN .",
    "in TOWN there was a ANIMAL .",
    "the ANIMAL had a THING .",
    "HERO looked for the THING .",
    "one day the ANIMAL came to HERO .",
    "but nobody in TOWN knew of the THING .",
    "it rained for a long time .",
    "HERO and the ANIMAL went away .",
    "people spoke of the old days .",
    "they said that the THING was lost .",
]
_WORDS = sorted({w for form in _FORMS for w in form.split()} - set(_LISTS))
VOCABULARY = ["<start>", *_WORDS, *(w for words in _LISTS.values() for w in words.split())]
VOCAB_SIZE = len(VOCABULARY)
RECALLED = torch.arange(VOCAB_SIZE) > len(_WORDS)
"""[V]: which tokens are of the story and not of the language."""

_INDEX = {word: at for at, word in enumerate(VOCABULARY)}


def story(generator, num_sentences):
    """Tokens of one story."""
    chosen = {kind: generator.choice(words.split()) for kind, words in _LISTS.items()}
    forms = (_FORMS[generator.integers(len(_FORMS))].split() for _ in range(num_sentences))
    return [0, *(_INDEX[str(chosen.get(word, word))] for form in forms for word in form)]


def batches(batch_size, length, *, num_sentences=20, seed=0):
    """Endless batches [B,L] of stories, one after the other; the target is the next token."""
    generator = np.random.default_rng(seed)
    kept = []
    while True:
        while len(kept) <= batch_size * length:
            kept += story(generator, num_sentences)
        rows = torch.tensor(kept[: batch_size * length + 1])
        kept = kept[batch_size * length :]
        yield Batch(rows[:-1].view(batch_size, length), rows[1:].view(batch_size, length))
