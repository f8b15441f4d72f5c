// What queries read by softmax attention: sum_j w_ij v_j / sum_j w_ij, side by side for all heads. An invocation makes 4
// queries times 4 axes of one head.

// [heads, scores]: rows of weights of each tile
@group(0) @binding(1) var<storage, read> weights: array<vec4f>;
// [heads, keys, 1 + D]
@group(0) @binding(2) var<storage, read> values: array<f32>;
// [tiles]
@group(0) @binding(3) var<storage, read> tiles: array<QueryTile>;
// [rows, heads D]
@group(0) @binding(4) var<storage, read_write> merged: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= extents.invocations {
        return;
    }
    let d = extents.head_dim;
    let columns = (d + 3u) / 4u;
    let blocks = (extents.tile_rows + 3u) / 4u;
    let first_axis = at % columns * 4u;
    let first_row = at / columns % blocks * 4u;
    let of_tile = at / columns / blocks;
    let tile = tiles[of_tile % extents.tiles];
    let head = of_tile / extents.tiles;
    if first_row >= tile.count {
        return;
    }
    let row = min(vec4u(first_row) + vec4u(0u, 1u, 2u, 3u), vec4u(tile.count - 1u));
    let base = vec4u(head * extents.scores + tile.scores) + row * fours(tile);
    let axis = vec4u(1u) + min(vec4u(first_axis) + vec4u(0u, 1u, 2u, 3u), vec4u(d - 1u));
    let count = seen(tile, row.w);
    var sums = mat4x4f();
    var totals = vec4f();
    for (var j = 0u; j < count; j++) {
        let four = j / 4u;
        let lane = j % 4u;
        let w = vec4f(
            weights[base.x + four][lane],
            weights[base.y + four][lane],
            weights[base.z + four][lane],
            weights[base.w + four][lane],
        );
        let v = vec4u((head * extents.keys + tile.first_key + j) * (d + 1u)) + axis;
        sums += outer(w, vec4f(values[v.x], values[v.y], values[v.z], values[v.w]));
        totals += w;
    }
    for (var i = 0u; i < min(4u, tile.count - first_row); i++) {
        let to = (tile.first + first_row + i) * extents.outputs * 4u + head * d + first_axis;
        for (var c = 0u; c < min(4u, d - first_axis); c++) {
            merged[to + c] = sums[i][c] / totals[i];
        }
    }
}
