// Rows of a tensor of keys as those of batch heads, and what is known of them and of their values. Rows that are
// padding, or hold a number that is not finite, are zeros and left out. An invocation carries a row. BH: batch entries
// times heads, those of one group.

// [num_segments + 1]
@group(0) @binding(1) var<storage, read> borders: array<u32>;
// [B, Hk, S, D]
@group(0) @binding(2) var<storage, read> words: array<u32>;
// [B, Hk, S, E]
@group(0) @binding(3) var<storage, read> of_values: array<u32>;
// 1 where a key is padding [B, S]; with masked 0 there is none
@group(0) @binding(4) var<storage, read> is_padding: array<u32>;
// [BH, S, D]
@group(0) @binding(5) var<storage, read_write> keys: array<f32>;
// 0, or that a row is left out [BH, S]
@group(0) @binding(6) var<storage, read_write> shifts: array<i32>;
// [BH, segments, 2]
@group(0) @binding(7) var<storage, read_write> facts: array<atomic<u32>>;
// bits of the largest magnitude of each row of values, 0 where a row is left out [BH, S]
@group(0) @binding(8) var<storage, read_write> largest_of: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= shape.invocations {
        return;
    }
    let row = at % shape.rows;
    let batch_head = at / shape.rows;
    let base = key_batch_head(batch_head) * shape.rows + row;
    let d = shape.head_dim;
    var bad = false;
    for (var axis = 0u; axis < d; axis++) {
        let number = base * d + axis;
        bad = bad || !is_finite(bits_in(words[word_of(number)], number));
    }
    var largest = 0u;
    for (var column = 0u; column < shape.value_dim; column++) {
        let number = base * shape.value_dim + column;
        let bits = bits_in(of_values[word_of(number)], number);
        bad = bad || !is_finite(bits);
        largest = max(largest, bits & 0x7fffffffu);
    }
    var padding = false;
    if shape.masked == 1u {
        padding = is_padding[(shape.first_batch_head + batch_head) / shape.heads * shape.rows + row] == 1u;
    }
    let left_out = padding || bad;
    for (var axis = 0u; axis < d; axis++) {
        let number = base * d + axis;
        keys[at * d + axis] = bitcast<f32>(select(bits_in(words[word_of(number)], number), 0u, left_out));
    }
    shifts[at] = select(0, LEFT_OUT, left_out);
    largest_of[at] = select(largest, 0u, left_out);
    if bad && !padding {
        atomicMax(&facts[(batch_head * shape.segments + segment_of(row)) * 2u], NO_KEY - row);
    }
}
