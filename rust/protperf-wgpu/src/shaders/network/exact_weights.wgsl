// Logits of softmax attention to weights: e^(s_ij - max_j s_ij), 0 for keys that are not seen. An invocation makes the
// weights of one query of one head.

// [tiles]
@group(0) @binding(1) var<storage, read> tiles: array<QueryTile>;
// [heads, scores]: rows of each tile
@group(0) @binding(2) var<storage, read_write> scores: array<vec4f>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= extents.invocations {
        return;
    }
    let row = at % extents.tile_rows;
    let of_tile = at / extents.tile_rows;
    let tile = tiles[of_tile % extents.tiles];
    if row >= tile.count {
        return;
    }
    let base = of_tile / extents.tiles * extents.scores + tile.scores + row * fours(tile);
    let count = seen(tile, row);
    let ends = (count + 3u) / 4u;
    var top = scores[base].x;
    for (var j = 0u; j < ends; j++) {
        let four = scores[base + j];
        let is_seen = vec4u(j * 4u) + vec4u(0u, 1u, 2u, 3u) < vec4u(count);
        let most = select(vec4f(top), four, is_seen);
        top = max(max(top, max(most.x, most.y)), max(most.z, most.w));
    }
    for (var j = 0u; j < ends; j++) {
        let less = scores[base + j] - vec4f(top);
        let weights = vec4f(exp_negative(less.x), exp_negative(less.y), exp_negative(less.z), exp_negative(less.w));
        let is_seen = vec4u(j * 4u) + vec4u(0u, 1u, 2u, 3u) < vec4u(count);
        scores[base + j] = select(vec4f(0.0), weights, is_seen);
    }
    // The next query of a block may see as many as one four more, and reads them for this one too.
    if ends < fours(tile) {
        scores[base + ends] = vec4f(0.0);
    }
}
