// Logits of softmax attention: s_ij = factor q_i . k_j. An invocation makes 4 queries times 4 keys.

// [heads, rows, D]
@group(0) @binding(1) var<storage, read> queries: array<f32>;
// [heads, keys, D]
@group(0) @binding(2) var<storage, read> keys: array<f32>;
// [tiles]
@group(0) @binding(3) var<storage, read> tiles: array<QueryTile>;
// [heads, scores]: rows of each tile
@group(0) @binding(4) var<storage, read_write> scores: array<vec4f>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= extents.invocations {
        return;
    }
    let blocks = (extents.tile_rows + 3u) / 4u;
    let four = at % extents.tile_keys;
    let row = at / extents.tile_keys % blocks * 4u;
    let of_tile = at / extents.tile_keys / blocks;
    let tile = tiles[of_tile % extents.tiles];
    let head = of_tile / extents.tiles;
    if row >= tile.count || four >= fours(tile) || four * 4u >= seen(tile, min(row + 3u, tile.count - 1u)) {
        return;
    }
    let d = extents.head_dim;
    let last = vec4u(tile.count - 1u);
    let q = (vec4u(head * extents.rows + tile.first) + min(vec4u(row) + vec4u(0u, 1u, 2u, 3u), last)) * d;
    let own = min(vec4u(four * 4u) + vec4u(0u, 1u, 2u, 3u), vec4u(tile.keys - 1u));
    let k = (vec4u(head * extents.keys + tile.first_key) + own) * d;
    var sums = mat4x4f();
    for (var i = 0u; i < d; i++) {
        sums += outer(
            vec4f(queries[q.x + i], queries[q.y + i], queries[q.z + i], queries[q.w + i]),
            vec4f(keys[k.x + i], keys[k.y + i], keys[k.z + i], keys[k.w + i]),
        );
    }
    let to = head * extents.scores + tile.scores + row * fours(tile) + four;
    for (var i = 0u; i < min(4u, tile.count - row); i++) {
        scores[to + i * fours(tile)] = sums[i] * extents.factor;
    }
}
