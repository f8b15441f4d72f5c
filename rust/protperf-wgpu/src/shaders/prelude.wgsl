// What every stage shares. A feature is a pair, mantissa * 2^exponent; a state has a row for each feature,
// [reference, sum of features, sums of features times values], relative to 2^reference. Exponents are integers, so a
// change of reference is exact.
//
// Nothing here relies on NaN, infinity or denormal numbers, nor on an operation being fused or not: compilers of
// shaders may assume what they like of all of these. The trip count of every loop stays below 65,536 in all, where
// one driver silently stops.

struct Sizes {
    invocations: u32,
    lines: u32,
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
}

struct Feature {
    mantissa: f32,
    exponent: i32,
}

// Some rows of a line, and which of its states they read or make.
struct Tile {
    segment: u32,
    first: u32,
    count: u32,
    state: u32,
}

@group(0) @binding(0) var<uniform> sizes: Sizes;

const GROUPS = 32768u;
const EXPONENTIAL = 0u;
const RELU = 1u;
const ELU1 = 2u;
const TRIGONOMETRIC = 3u;
// The exponent of what is not there: below the sum of any two others, and twice it is still a number.
const EMPTY = -1073741824;
// The same in a state, whose references are floats.
const EMPTY_REFERENCE = -1e37;
// Exponents of features stay within these bits.
const EXPONENT_LIMIT = 268435456.0;
const LOG2_E = 1.44269504088896341;

fn invocation(group: vec3u, local: u32) -> u32 {
    return (group.y * GROUPS + group.x) * 64u + local;
}

fn reference_of(stored: f32) -> i32 {
    return select(i32(clamp(stored, -EXPONENT_LIMIT, EXPONENT_LIMIT)), EMPTY, stored < -1e30);
}

fn stored_reference(reference: i32) -> f32 {
    return select(f32(reference), EMPTY_REFERENCE, reference == EMPTY);
}

// 2^k; 0 so far below that a product with it could be denormal.
fn exp2_int(k: i32) -> f32 {
    return select(bitcast<f32>(u32(clamp(k, -126, 127) + 127) << 23u), 0.0, k < -125);
}

fn exp2_int4(k: vec4i) -> vec4f {
    let power = bitcast<vec4f>(vec4u(clamp(k, vec4i(-126), vec4i(127)) + vec4i(127)) << vec4u(23u));
    return select(power, vec4f(0.0), k < vec4i(-125));
}

// 2^f for |f| <= 1/2: the built-in one may be wrong by 64 units in the last place.
fn exp2_fraction(f: f32) -> f32 {
    var sum = 1.545316294512069e-4;
    sum = sum * f + 1.3390863364671234e-3;
    sum = sum * f + 9.618082557277852e-3;
    sum = sum * f + 5.550357114219078e-2;
    sum = sum * f + 2.4022650760568126e-1;
    sum = sum * f + 6.931471880262288e-1;
    return sum * f + 1.0;
}

// e^x for x <= 0.
fn exp_negative(x: f32) -> f32 {
    let whole = round(max(x, -200.0) * LOG2_E);
    let rest = (max(x, -200.0) - whole * 0.693359375) + whole * 2.1219444e-4;
    return exp2_fraction(rest * LOG2_E) * exp2_int(i32(whole));
}

// x as a mantissa in [1/2, 1) and an exponent; x is not 0.
fn split(x: f32) -> Feature {
    let bits = bitcast<u32>(x);
    let exponent = i32((bits >> 23u) & 255u) - 126;
    return Feature(bitcast<f32>((bits & 0x807fffffu) | 0x3f000000u), exponent);
}

// The outer product of the entries of 4 rows and of 4 columns; a column of the result belongs to a row.
fn outer(rows: vec4f, columns: vec4f) -> mat4x4f {
    return mat4x4f(rows.x * columns, rows.y * columns, rows.z * columns, rows.w * columns);
}
