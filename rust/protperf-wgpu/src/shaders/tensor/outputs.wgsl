// What queries read as rows of a tensor, and NaN where they saw a number that is not finite. An invocation writes a word;
// of a word that a batch head of another group shares it leaves that half as it is.
// BH: batch entries times heads, those of one group.

// [num_segments + 1]
@group(0) @binding(1) var<storage, read> borders: array<u32>;
// [BH, L, 1 + E], the first column unused
@group(0) @binding(2) var<storage, read> out: array<f32>;
// [BH, L]
@group(0) @binding(3) var<storage, read> is_bad: array<u32>;
// [BH, segments, 2]
@group(0) @binding(4) var<storage, read> facts: array<u32>;
// [BH, S]
@group(0) @binding(5) var<storage, read> powers: array<i32>;
// [B, H, L, E]
@group(0) @binding(6) var<storage, read_write> words: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= shape.invocations {
        return;
    }
    let of_batch_head = shape.rows * shape.value_dim;
    let first = shape.first_batch_head * of_batch_head;
    let end = first + shape.batch_heads * of_batch_head;
    if shape.stored == FLOAT32 {
        words[first + at] = rounded(at);
        return;
    }
    let word = (first >> 1u) + at;
    var found = words[word];
    for (var half = 0u; half < 2u; half++) {
        let number = word * 2u + half;
        if number >= first && number < end {
            let place = 16u * half;
            found = (found & ~(0xffffu << place)) | (rounded(number - first) << place);
        }
    }
    words[word] = found;
}

// A number of the group as it is stored.
fn rounded(at: u32) -> u32 {
    let column = at % shape.value_dim;
    let place = at / shape.value_dim;
    let row = place % shape.rows;
    let segment = (place / shape.rows * shape.segments + segment_of(row)) * 2u;
    let bad_key = facts[segment];
    let sees_bad = bad_key != 0u && (shape.causal == 0u || NO_KEY - bad_key <= row);
    if is_bad[place] == 1u || sees_bad {
        return nan_bits(shape.stored);
    }
    var power = power_of(facts[segment + 1u]);
    if shape.causal == 1u {
        power = powers[place];
    }
    // A mean of finite numbers is finite, though its rounding may not be.
    let is_limited = shape.stored == FLOAT32;
    return stored_bits(out[place * (shape.value_dim + 1u) + column + 1u], power, shape.stored, is_limited);
}
