// What every stage of linear attention shares. A feature is a pair, mantissa * 2^exponent; a state has a row for each
// feature, [reference, sum of features, sums of features times values], relative to 2^reference. Exponents are integers,
// so a change of reference is exact. Values may be over powers of two, and sums of them then are, too: `powers.wgsl`.

struct Sizes {
    invocations: u32,
    batch_heads: u32,
    rows: u32,
    head_dim: u32,
    projections: u32,
    features: u32,
    width: u32,
    tiles: u32,
    tile_rows: u32,
    states: u32,
    family: u32,
    mode: u32,
    epsilon: f32,
    input_limit: f32,
    factor: f32,
    flag: u32,
    powers: u32,
    padding_0: u32,
    padding_1: u32,
    padding_2: u32,
}

struct Feature {
    mantissa: f32,
    exponent: i32,
}

// Some rows of a batch head, and which of its states they read or make.
struct Tile {
    segment: u32,
    first: u32,
    count: u32,
    state: u32,
}

@group(0) @binding(0) var<uniform> sizes: Sizes;

// Families; the functions of activation maps have the numbers that project.wgsl gives them.
const EXPONENTIAL = 0u;
const TRIGONOMETRIC = 1u;
// The exponent of what is not there: below the sum of any two others, and twice it is still a number.
const EMPTY = -1073741824;
// The same in a state, whose references are floats.
const EMPTY_REFERENCE = -1e37;
// Exponents of features stay within these bits.
const EXPONENT_LIMIT = 268435456.0;

fn reference_of(stored: f32) -> i32 {
    return select(i32(clamp(stored, -EXPONENT_LIMIT, EXPONENT_LIMIT)), EMPTY, stored < -1e30);
}

fn stored_reference(reference: i32) -> f32 {
    return select(f32(reference), EMPTY_REFERENCE, reference == EMPTY);
}

// x as a mantissa in [1/2, 1) and an exponent; x is not 0.
fn split(x: f32) -> Feature {
    let bits = bitcast<u32>(x);
    let exponent = i32((bits >> 23u) & 255u) - 126;
    return Feature(bitcast<f32>((bits & 0x807fffffu) | 0x3f000000u), exponent);
}
