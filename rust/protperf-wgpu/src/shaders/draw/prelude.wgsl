// What the stages of drawing an orthogonal projection share: the numbers of `rust/protperf-core/src/rng.rs`, in f32.

struct Draw {
    invocations: u32,
    // Rows of omega, M, and their width D.
    rows: u32,
    head_dim: u32,
    // Which reflection a stage applies.
    step: u32,
    // 1 where norms are those of normal vectors, 0 where they are sqrt(D).
    is_chi: u32,
    key_0: u32,
    key_1: u32,
    layer: u32,
    head: u32,
    number: u32,
    padding_0: u32,
    padding_1: u32,
    padding_2: u32,
    padding_3: u32,
    padding_4: u32,
    padding_5: u32,
}

@group(0) @binding(0) var<uniform> draw: Draw;

const LN_2 = 0.693147180559945309;
const RADIANS_PER_COUNT = 1.4629180792671596e-9;

// Rows of omega in a block: fewer in the last one.
fn rows_of(block: u32) -> u32 {
    return min(draw.head_dim, draw.rows - block * draw.head_dim);
}

// The first normal of a block: each of those before it took D rows, and where norms are drawn as many again.
fn first_of(block: u32) -> u32 {
    return block * draw.head_dim * draw.head_dim * (1u + draw.is_chi);
}

// The upper and the lower word of a product.
fn wide_product(a: u32, b: u32) -> vec2u {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let middle = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let other = (a & 0xffffu) * (b >> 16u) + (middle & 0xffffu);
    return vec2u((a >> 16u) * (b >> 16u) + (middle >> 16u) + (other >> 16u), a * b);
}

// Philox 4x32-10.
fn philox(index: u32) -> vec4u {
    var counter = vec4u(index, draw.layer, draw.head, draw.number);
    var key = vec2u(draw.key_0, draw.key_1);
    for (var round = 0u; round < 10u; round++) {
        let a = wide_product(0xd2511f53u, counter.x);
        let b = wide_product(0xcd9e8d57u, counter.z);
        counter = vec4u(b.x ^ counter.y ^ key.x, b.y, a.x ^ counter.w ^ key.y, a.y);
        key += vec2u(0x9e3779b9u, 0xbb67ae85u);
    }
    return counter;
}

// A fraction of 64 bits, not 0, as a mantissa in [1, 2] and the exponent below.
fn mantissa_of(fraction: vec2u, shift: u32) -> f32 {
    var top = fraction.x;
    if shift >= 32u {
        top = fraction.y << (shift - 32u);
    } else if shift > 0u {
        top = (fraction.x << shift) | (fraction.y >> (32u - shift));
    }
    return f32(top) * 4.656612873077393e-10;
}

fn shift_of(fraction: vec2u) -> u32 {
    return select(countLeadingZeros(fraction.x), 32u + countLeadingZeros(fraction.y), fraction.x == 0u);
}

// (artanh s) for 0 <= s <= 1/3.
fn area_tangent(s: f32) -> f32 {
    let q = s * s;
    var sum = 0.0588235294;
    sum = sum * q + 0.0666666667;
    sum = sum * q + 0.0769230769;
    sum = sum * q + 0.0909090909;
    sum = sum * q + 0.1111111111;
    sum = sum * q + 0.1428571429;
    sum = sum * q + 0.2;
    sum = sum * q + 0.3333333333;
    return s + s * q * sum;
}

// -ln u of a fraction u: from 1 - u where u is near 1.
fn minus_log(fraction: vec2u) -> f32 {
    if fraction.x >= 0x80000000u {
        let rest = vec2u(~fraction.x, ~fraction.y + 1u);
        let shift = shift_of(rest);
        let v = mantissa_of(rest, shift) * exp2_int(-1 - i32(shift));
        return 2.0 * area_tangent(v / (2.0 - v));
    }
    let shift = shift_of(fraction);
    let m = mantissa_of(fraction, shift);
    return f32(shift + 1u) * LN_2 - 2.0 * area_tangent((m - 1.0) / (m + 1.0));
}

// Number `index` of the stream: Box and Muller's two come from one counter.
fn normal(index: u32) -> f32 {
    let words = philox(index >> 1u);
    // 53 bits and a half, so that neither is 0.
    let low = (words.yw & vec2u(0xfffff800u)) | vec2u(0x400u);
    let radius = sqrt(2.0 * minus_log(vec2u(words.x, low.x)));
    let quarters = (words.z + 0x20000000u) >> 30u;
    let rest = f32(bitcast<i32>(words.z - (quarters << 30u))) + f32(low.y) * 2.3283064365386963e-10;
    let at = turned(rest * RADIANS_PER_COUNT, i32(quarters));
    return radius * select(at.x, at.y, (index & 1u) == 1u);
}

// A Householder reflection x - beta v (v.x): v is a row from its place `step` on, but for its first entry.
struct Reflection {
    first: f32,
    beta: f32,
    // The sign of R's diagonal entry.
    sign: f32,
}

fn reflection_of(first: f32, squares_of_rest: f32) -> Reflection {
    let norm = sqrt(first * first + squares_of_rest);
    let diagonal = select(norm, -norm, first > 0.0);
    let own = first - diagonal;
    let squares = own * own + squares_of_rest;
    let beta = select(0.0, 2.0 / max(squares, 1e-30), squares > 0.0);
    return Reflection(own, beta, select(1.0, -1.0, diagonal < 0.0));
}
