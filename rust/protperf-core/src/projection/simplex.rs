//! Rotated regular simplices: the rows of a block lie as far from each other as directions can.
//!
//! m unit vectors with cosine -1/(m - 1) between any two, in the space of m orthonormal rows of a Haar-distributed
//! rotation, so that each by itself is uniform on the sphere. With rows r_l of the rotation,
//!
//! ```text
//! s_i = sqrt(m/(m-1)) r_i - (sqrt(m)+1) (m-1)^-3/2 sum_{l<m-1} r_l,    s_{m-1} = sum_{l<m-1} r_l / sqrt(m-1)
//! ```
//!
//! Source: Reid et al. 2023, arXiv:2301.13856.

/// Turns the orthonormal rows of a block into a simplex; a single row stays.
pub(super) fn arrange(head_dim: usize, block: &mut [f64]) {
    let count = (block.len() / head_dim) as f64;
    if count < 2.0 {
        return;
    }
    let (rows, last) = block.split_at_mut(block.len() - head_dim);
    last.fill(0.0);
    for row in rows.chunks_exact(head_dim) {
        last.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    let root = libm::sqrt(count - 1.0);
    let own = libm::sqrt(count) / root;
    let shared = (libm::sqrt(count) + 1.0) / (root * root * root);
    for row in rows.chunks_exact_mut(head_dim) {
        row.iter_mut().zip(last.iter()).for_each(|(x, sum)| *x = own * *x - shared * sum);
    }
    last.iter_mut().for_each(|x| *x /= root);
}
