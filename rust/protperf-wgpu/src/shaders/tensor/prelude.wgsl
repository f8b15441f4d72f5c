// What is shared by the stages between tensors that stay on the device and the rows of batch heads that attention
// computes on. A tensor is read and written as words, one number in 32 bits or two in 16 each, and numbers are judged
// by their bits: what is not finite never becomes a float here, for compilers may assume that no such number exists.

struct Shape {
    invocations: u32,
    // Of this group of batch heads, and the first of them among all.
    batch_heads: u32,
    first_batch_head: u32,
    // Of queries, and how many of them share a head of keys.
    heads: u32,
    group: u32,
    // Rows of a batch head.
    rows: u32,
    head_dim: u32,
    value_dim: u32,
    features: u32,
    segments: u32,
    stored: u32,
    // 1 where a query sees the keys up to its own place.
    causal: u32,
    // 1 where there is a mask of padding.
    masked: u32,
    // Tiles of the keys of a batch head.
    tiles: u32,
    // Which step of a shader that has several.
    step: u32,
    padding: u32,
}

@group(0) @binding(0) var<uniform> shape: Shape;

const FLOAT32 = 0u;
const FLOAT16 = 1u;
const BFLOAT16 = 2u;
// The shift of a row that makes no features.
const LEFT_OUT = -2147483647;
// Values are divided by a power of two where the largest is beyond these bits, so that their sums are finite.
const EXTREME_BITS = 60;
// The power of zeros: below the exponent of every number.
const OF_ZEROS = -150;
// Facts of a segment of a batch head: the first, less this, is the first key that is not finite, and 0 where there is
// none; the second are the bits of the largest magnitude of a value. Both are maxima, which no order changes.
const NO_KEY = 0xffffffffu;
// The reference of a state that has seen no key.
const EMPTY_REFERENCE = -1e37;

// The head of keys of a batch head, counted over all batch entries.
fn key_batch_head(batch_head: u32) -> u32 {
    return (shape.first_batch_head + batch_head) / shape.group;
}

// The word of a tensor that holds a number, and the number in it as the bits of a float.
fn word_of(at: u32) -> u32 {
    return select(at >> 1u, at, shape.stored == FLOAT32);
}

fn bits_in(word: u32, at: u32) -> u32 {
    let half = (word >> (16u * (at & 1u))) & 0xffffu;
    switch shape.stored {
        case FLOAT16: {
            return widened(half);
        }
        case BFLOAT16: {
            return half << 16u;
        }
        default: {
            return word;
        }
    }
}

fn widened(half: u32) -> u32 {
    let sign = (half & 0x8000u) << 16u;
    let exponent = (half >> 10u) & 31u;
    let fraction = half & 1023u;
    if exponent == 31u {
        return sign | 0x7f800000u | (fraction << 13u);
    }
    if exponent == 0u {
        return sign | bitcast<u32>(f32(fraction) * 5.9604644775390625e-8);
    }
    return sign | ((exponent + 112u) << 23u) | (fraction << 13u);
}

fn is_finite(bits: u32) -> bool {
    return (bits & 0x7f800000u) != 0x7f800000u;
}

// The exponent of a magnitude that is not 0, below that of normal numbers too.
fn exponent_of(magnitude: u32) -> i32 {
    if magnitude < 0x800000u {
        return i32(bitcast<u32>(f32(magnitude)) >> 23u) - 127 - 149;
    }
    return i32(magnitude >> 23u) - 127;
}

// What values are divided by whose largest magnitude has some bits: an exponent, 0 where that is an ordinary one, and
// below all others where there are only zeros. It never falls where the magnitude grows.
fn power_of(largest: u32) -> i32 {
    if largest == 0u {
        return OF_ZEROS;
    }
    let exponent = exponent_of(largest);
    return select(0, exponent, abs(exponent) > EXTREME_BITS);
}

// A finite number over 2^power, which is no less than its own.
fn over_power(bits: u32, power: i32) -> f32 {
    let magnitude = bits & 0x7fffffffu;
    if power == 0 || magnitude == 0u {
        return bitcast<f32>(bits);
    }
    let is_small = magnitude < 0x800000u;
    let normal = select(magnitude, bitcast<u32>(f32(magnitude)), is_small);
    let mantissa = bitcast<f32>((bits & 0x80000000u) | (normal & 0x7fffffu) | 0x3f800000u);
    return mantissa * exp2_int(exponent_of(magnitude) - power);
}

// x times 2^power as a tensor of a type stores it, rounded to the nearest, ties to even. Beyond the largest number it is
// infinite, or where it is limited that number, as tensors of the host are stored.
fn stored_bits(x: f32, power: i32, stored: u32, is_limited: bool) -> u32 {
    var digits = 23u;
    var lowest = -126;
    var highest = 127;
    if stored == FLOAT16 {
        digits = 10u;
        lowest = -14;
        highest = 15;
    }
    if stored == BFLOAT16 {
        digits = 7u;
    }
    let bits = bitcast<u32>(x);
    let sign = select((bits >> 16u) & 0x8000u, bits & 0x80000000u, stored == FLOAT32);
    if (bits & 0x7f800000u) == 0u {
        return sign;
    }
    let exponent = i32((bits >> 23u) & 255u) - 127 + power;
    let mantissa = (bits & 0x7fffffu) | 0x800000u;
    let drop = 23u - digits + u32(clamp(lowest - exponent, 0, 31));
    if drop > 24u {
        return sign;
    }
    let kept = mantissa >> drop;
    let rest = mantissa & ((1u << drop) - 1u);
    let half = (1u << drop) >> 1u;
    let is_up = drop > 0u && (rest > half || (rest == half && (kept & 1u) == 1u));
    let rounded = kept + select(0u, 1u, is_up);
    // A carry moves on to the exponent by itself.
    let biased = u32(max(exponent, lowest) - lowest) << digits;
    let largest = (u32(highest - lowest + 2) << digits) - select(0u, 1u, is_limited);
    return sign | select(min(biased + rounded, largest), largest, exponent > highest);
}

fn nan_bits(stored: u32) -> u32 {
    if stored == FLOAT16 {
        return 0x7e00u;
    }
    return select(0x7fc0u, 0x7fc00000u, stored == FLOAT32);
}

// Where the row of a feature lies in a tensor of states; `state` counts batch heads, and segments of each.
fn state_row(state: u32, feature: u32) -> u32 {
    let batch_head = shape.first_batch_head + state / shape.segments;
    let batch = batch_head / shape.heads;
    let place = (batch * shape.segments + state % shape.segments) * shape.heads + batch_head % shape.heads;
    return (place * shape.features + feature) * (shape.value_dim + 2u);
}
