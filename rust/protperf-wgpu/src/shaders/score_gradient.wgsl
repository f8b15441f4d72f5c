// Gradients of the scores of one tile: docs/algorithm.md, section 7.
//
//     G_ij = g_i . [1, v_j]   for j <= i, else 0
//
// An invocation makes 4 queries times 4 keys. BH: batch entries times heads, those of one group.

// cotangents of queries [BH, rows, width]
@group(0) @binding(1) var<storage, read> cotangents: array<f32>;
// [1, v] of keys [BH, rows, width]
@group(0) @binding(2) var<storage, read> values: array<f32>;
// [tiles]
@group(0) @binding(3) var<storage, read> tiles: array<Tile>;
// by query and key [BH, tiles, tile_rows, tile_rows]
@group(0) @binding(4) var<storage, read_write> gradients: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= sizes.invocations {
        return;
    }
    let blocks = (sizes.tile_rows + 3u) / 4u;
    let key = at % blocks * 4u;
    let query = at / blocks % blocks * 4u;
    let of_tile = at / blocks / blocks;
    let tile = tiles[of_tile % sizes.tiles];
    if key >= tile.count || query >= tile.count {
        return;
    }
    let first_row = of_tile / sizes.tiles * sizes.rows + tile.first;
    let last = vec4u(tile.count - 1u);
    let q = (vec4u(first_row) + min(vec4u(query) + vec4u(0u, 1u, 2u, 3u), last)) * sizes.width;
    let k = (vec4u(first_row) + min(vec4u(key) + vec4u(0u, 1u, 2u, 3u), last)) * sizes.width;
    var sums = mat4x4f();
    for (var c = 0u; c < sizes.width; c++) {
        sums += outer(
            vec4f(cotangents[q.x + c], cotangents[q.y + c], cotangents[q.z + c], cotangents[q.w + c]),
            vec4f(values[k.x + c], values[k.y + c], values[k.z + c], values[k.w + c]),
        );
    }
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            if query + i < tile.count && key + j < tile.count {
                let to = (of_tile * sizes.tile_rows + query + i) * sizes.tile_rows + key + j;
                gradients[to] = select(0.0, sums[i][j], key + j <= query + i);
            }
        }
    }
}
