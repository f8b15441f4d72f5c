//! The shapes that every backend has to get right.

use super::{Case, Directions};
use protperf::FeatureMap;

/// Lengths about the lanes of 4, 8 and 16 and off the chunks of 64; head_dim (each to 17 and about powers of two),
/// value_dim and num_features as odd as these.
pub const SHAPES: [(usize, usize, usize, usize); 30] = [
    (0, 4, 3, 5),
    (1, 1, 1, 1),
    (2, 1, 3, 1),
    (3, 2, 5, 3),
    (4, 3, 4, 5),
    (5, 5, 2, 7),
    (7, 7, 1, 9),
    (8, 8, 9, 16),
    (9, 9, 8, 15),
    (11, 12, 0, 6),
    (15, 15, 16, 17),
    (16, 16, 17, 31),
    (17, 17, 15, 33),
    (31, 31, 33, 65),
    (33, 32, 31, 64),
    (63, 33, 1, 63),
    (64, 63, 64, 31),
    (65, 64, 65, 33),
    (127, 65, 3, 17),
    (129, 6, 7, 37),
    (200, 12, 3, 21),
    (9, 17, 5, 129),
    (6, 127, 4, 255),
    (5, 128, 3, 257),
    (4, 129, 2, 256),
    (12, 10, 11, 13),
    (10, 11, 1, 257),
    (13, 13, 14, 255),
    (14, 14, 129, 2),
    (66, 5, 127, 4),
];

/// A shape with nothing else, with padding, with segments and grouped queries, and with the rest.
pub fn variants(map: FeatureMap, causal: bool, shape: (usize, usize, usize, usize)) -> [Case; 4] {
    let (len, head_dim, value_dim, num_features) = shape;
    let case = Case { value_dim, ..Case::new(map, causal, len, head_dim, num_features) };
    let third = (len / 3) as i64;
    let borders = vec![0, 0, third, third + i64::from(len > 2), len as i64];
    let kv_len = if causal { len } else { len / 2 + 3 };
    [
        Case { masked: true, batch: 2, ..case.clone() },
        Case { borders: Some(borders), heads: (2, 1), ..case.clone() },
        Case { heads: (4, 2), directions: Directions::PerHead, kv_len, ..case.clone() },
        case,
    ]
}
