//! One block: attention, then a gated feed-forward layer, each on the normed residual stream.
