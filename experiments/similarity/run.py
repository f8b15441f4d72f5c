"""Which amino acids attention treats alike, against BLOSUM62.

From the appendix of Choromanski et al. 2021 (arXiv:2009.14794): attention between the residues of proteins, averaged by
pair of amino acids; amino acids whose rows correlate are alike. The article shows two pictures side by side; here is
a number, what chance gives, and what a network knows that has not been trained.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from Bio.Align import substitution_matrices

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import proteins
from learning import train
from results import arguments, choose, print_cost, write_table
from small_model import SmallModel

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
LENGTH, BATCH_SIZE = 256, 16


def tokens_of(letters):
    """The token of each amino acid."""
    return [proteins.io.VOCABULARY.index(letter) for letter in letters]


@torch.no_grad()
def attention_by_pair(model, sequences):
    """Mean attention from one amino acid to another relative to how often the second is there, [20,20].

    Weights come from values that are one-hot, layer by layer; all heads and layers are averaged, and residues within
    four of the query are left out: they are close in the chain, and that says nothing of their kind.
    """
    model.eval()
    sums, counts = np.zeros((20, 20)), np.zeros((20, 20))
    index = np.full(proteins.VOCAB_SIZE, -1)
    index[tokens_of(AMINO_ACIDS)] = range(20)
    for sequence in sequences:
        tokens = torch.from_numpy(sequence[:LENGTH].astype(np.int64))[None]
        length = tokens.shape[1]
        x, total = model.embedding(tokens), np.zeros((length, length))
        for block in model.blocks:
            q, k, _ = block.heads(x)
            one_hot = torch.eye(length).expand(1, q.shape[1], length, length)
            total += block.core(q, k, one_hot)[0].mean(0).numpy() * length
            x = block(x)
        at = index[tokens[0]]
        far = np.abs(np.arange(length)[:, None] - np.arange(length)) > 4
        used = far & (at[:, None] >= 0) & (at >= 0)
        rows, columns = np.nonzero(used)
        np.add.at(sums, (at[rows], at[columns]), total[rows, columns])
        np.add.at(counts, (at[rows], at[columns]), 1)
    return sums / np.maximum(counts, 1)


@torch.no_grad()
def predictions_by_pair(model, sequences):
    """Log-odds [20,20] that the network expects one amino acid where another one is masked, both ways alike."""
    model.eval()
    sums = np.zeros((20, 20))
    for batch in proteins.once(sequences, BATCH_SIZE, LENGTH, causal=False):
        shares = model(batch.tokens, batch.padding).softmax(-1)[..., tokens_of(AMINO_ACIDS)].numpy()
        for at, token in enumerate(tokens_of(AMINO_ACIDS)):
            sums[at] += shares[batch.targets.numpy() == token].sum(0)
    shares = (sums + 1e-6) / (sums + 1e-6).sum(1, keepdims=True)
    odds = np.log(shares / shares.mean(0))
    return odds + odds.T


def attention_similarity(model, sequences):
    """Correlations of the rows of attention, after what all rows have in common is taken off."""
    by_pair = attention_by_pair(model, sequences)
    return np.corrcoef(by_pair - by_pair.mean(0))


def pairs(matrix):
    """The entries of the 190 pairs of different amino acids."""
    return matrix[np.triu_indices(20, 1)]


def agreement(similarity, blosum, num_shuffles, seed=0):
    """Correlation of ranks over pairs, and the share of relabellings of the amino acids that do as well (Mantel)."""
    generator = np.random.default_rng(seed)
    found = rank_correlation(pairs(similarity), pairs(blosum))
    orders = (generator.permutation(20) for _ in range(num_shuffles))
    as_good = sum(rank_correlation(pairs(similarity[np.ix_(o, o)]), pairs(blosum)) >= found for o in orders)
    return found, (1 + as_good) / (1 + num_shuffles)


def rank_correlation(a, b):
    """Spearman's; ties share their mean rank."""
    return np.corrcoef(_ranks(a), _ranks(b))[0, 1]


def _ranks(values):
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def embedding_similarity(model):
    """Correlations of what the network reads for each amino acid."""
    rows = model.embedding.weight.detach()[tokens_of(AMINO_ACIDS)].numpy()
    rows = rows - rows.mean(0)
    return np.corrcoef(rows)


def draw(path, matrices):
    """Matrices side by side; the diagonal is left out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(matrices), figsize=(5 * len(matrices), 5), layout="constrained")
    for panel, (title, matrix) in zip(panels, matrices.items(), strict=True):
        panel.imshow(np.where(np.eye(20) > 0, np.nan, matrix), cmap="viridis")
        panel.set(title=title, xticks=range(20), yticks=range(20))
        panel.set_xticklabels(AMINO_ACIDS)
        panel.set_yticklabels(AMINO_ACIDS)
    figure.savefig(path, dpi=120)


def nearest(similarity, count=6):
    """The pairs that are most alike."""
    a, b = np.triu_indices(20, 1)
    order = np.argsort(-pairs(similarity))[:count]
    return " ".join(AMINO_ACIDS[a[i]] + AMINO_ACIDS[b[i]] for i in order)


def main():
    """Run, and write the table and the picture."""
    options = arguments(__doc__.splitlines()[0], fasta=True)
    num_steps = choose(options, quick=1, usual=800, full=4000)
    num_read = choose(options, quick=4, usual=100, full=800)
    most = choose(options, quick=20_000, usual=200_000, full=20_000_000)
    sequences = proteins.read(options.fasta, most)
    table = substitution_matrices.load("BLOSUM62")
    blosum = np.array([[table[a][b] for b in AMINO_ACIDS] for a in AMINO_ACIDS])
    rows, first = [], None
    for seed in choose(options, quick=(0,), usual=(0,), full=(0, 1, 2)):
        model = SmallModel("positive", vocab_size=proteins.VOCAB_SIZE, max_length=LENGTH, num_features=64, seed=seed)
        for steps in (0, num_steps):
            train(model, proteins.batches(sequences, BATCH_SIZE, LENGTH, causal=False, seed=seed), steps)
            similarities = {
                "attention": attention_similarity(model, sequences[:num_read]),
                "embedding": embedding_similarity(model),
                "predictions": predictions_by_pair(model, sequences),
            }
            first = similarities if seed == 0 else first
            for what, similarity in similarities.items():
                found, chance = agreement(similarity, blosum, choose(options, quick=20, usual=1000, full=10000))
                rows.append([f"{seed}", f"{steps}", what, f"{found:.2f}", f"{chance:.3f}", nearest(similarity)])
                print(rows[-1], file=sys.stderr, flush=True)
    header = ["seed", "steps", "similarity from", "rank correlation", "as good by chance", "most alike"]
    write_table(options.out / "table.md", header, rows)
    draw(options.out / "figure.png", {**first, "BLOSUM62": blosum})
    print_cost()


if __name__ == "__main__":
    main()
