// Rows of a tensor of queries as those of batch heads, zeros where they hold a number that is not finite. An invocation
// carries a row. BH: batch entries times heads, those of one group.

// [B, H, L, D]
@group(0) @binding(1) var<storage, read> words: array<u32>;
// [BH, L, D]
@group(0) @binding(2) var<storage, read_write> queries: array<f32>;
// 1 where a row was not finite [BH, L]
@group(0) @binding(3) var<storage, read_write> is_bad: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= shape.invocations {
        return;
    }
    let d = shape.head_dim;
    let base = (shape.first_batch_head * shape.rows + at) * d;
    var bad = false;
    for (var axis = 0u; axis < d; axis++) {
        bad = bad || !is_finite(bits_in(words[word_of(base + axis)], base + axis));
    }
    for (var axis = 0u; axis < d; axis++) {
        let bits = bits_in(words[word_of(base + axis)], base + axis);
        queries[at * d + axis] = bitcast<f32>(select(bits, 0u, bad));
    }
    is_bad[at] = u32(bad);
}
