// Queries, keys and values of some heads: queries and keys get the length sqrt(temperature) D^1/4 and are rotated to their
// position; values follow a one, which counts keys. An invocation makes one row of one head.

// [rows, 3 all heads D]: queries, keys, values
@group(0) @binding(1) var<storage, read> qkv: array<f32>;
// cosines and sines [rows, D]
@group(0) @binding(2) var<storage, read> angles: array<f32>;
// lengths of queries and keys of all heads
@group(0) @binding(3) var<storage, read> lengths: array<f32>;
// [heads, rows, D]
@group(0) @binding(4) var<storage, read_write> queries: array<f32>;
// [heads, rows, D]
@group(0) @binding(5) var<storage, read_write> keys: array<f32>;
// [heads, rows, 1 + D]
@group(0) @binding(6) var<storage, read_write> values: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= extents.invocations {
        return;
    }
    let d = extents.head_dim;
    let row = at % extents.rows;
    let head = extents.first_head + at / extents.rows;
    // What a row holds of one side.
    let side = extents.width / 3u;
    let q = row * extents.inputs * 4u + head * d;
    let k = q + side;
    var squares = vec2f();
    for (var i = 0u; i < d; i++) {
        let pair = vec2f(qkv[q + i], qkv[k + i]);
        squares += pair * pair;
    }
    let by = lengths[head] / max(sqrt(squares), vec2f(1e-12));
    let half = d / 2u;
    for (var i = 0u; i < half; i++) {
        let cosine = angles[row * d + i];
        let sine = angles[row * d + half + i];
        let first = vec2f(qkv[q + i], qkv[k + i]) * by;
        let second = vec2f(qkv[q + half + i], qkv[k + half + i]) * by;
        let low = first * cosine - second * sine;
        let high = first * sine + second * cosine;
        queries[at * d + i] = low.x;
        queries[at * d + half + i] = high.x;
        keys[at * d + i] = low.y;
        keys[at * d + half + i] = high.y;
    }
    values[at * (d + 1u)] = 1.0;
    for (var i = 0u; i < d; i++) {
        values[at * (d + 1u) + 1u + i] = qkv[k + side + i];
    }
}
