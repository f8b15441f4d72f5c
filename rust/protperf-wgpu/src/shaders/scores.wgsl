// Products of queries and keys of one tile, for every pair of which the query sees the key: docs/algorithm.md, section 11.
//
//     s_ij = sum_m phi_m(q_i) phi_m(k_j)
//
// Each pair is relative to its own largest term, so that a pair depends on nothing but its two rows and no later row
// can make it vanish. An invocation makes 4 queries times 4 keys. BH: batch entries times heads, those of one group.

// [BH, rows, F]
@group(0) @binding(1) var<storage, read> queries: array<Feature>;
// [BH, rows, F]
@group(0) @binding(2) var<storage, read> keys: array<Feature>;
// [tiles]
@group(0) @binding(3) var<storage, read> tiles: array<Tile>;
// [BH, tiles, tile_rows, tile_rows]
@group(0) @binding(4) var<storage, read_write> scores: array<Feature>;

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
    if key > query || query >= tile.count {
        return;
    }
    let first_row = of_tile / sizes.tiles * sizes.rows + tile.first;
    let last = vec4u(tile.count - 1u);
    let q = (vec4u(first_row) + min(vec4u(query) + vec4u(0u, 1u, 2u, 3u), last)) * sizes.features;
    let k = (vec4u(first_row) + min(vec4u(key) + vec4u(0u, 1u, 2u, 3u), last)) * sizes.features;
    var top0 = vec4i(2 * EMPTY);
    var top1 = vec4i(2 * EMPTY);
    var top2 = vec4i(2 * EMPTY);
    var top3 = vec4i(2 * EMPTY);
    for (var m = 0u; m < sizes.features; m++) {
        let exponents = vec4i(keys[k.x + m].exponent, keys[k.y + m].exponent, keys[k.z + m].exponent, keys[k.w + m].exponent);
        top0 = max(top0, exponents + queries[q.x + m].exponent);
        top1 = max(top1, exponents + queries[q.y + m].exponent);
        top2 = max(top2, exponents + queries[q.z + m].exponent);
        top3 = max(top3, exponents + queries[q.w + m].exponent);
    }
    var sums = mat4x4f();
    for (var m = 0u; m < sizes.features; m++) {
        let a = keys[k.x + m];
        let b = keys[k.y + m];
        let c = keys[k.z + m];
        let d = keys[k.w + m];
        let exponents = vec4i(a.exponent, b.exponent, c.exponent, d.exponent);
        let mantissas = vec4f(a.mantissa, b.mantissa, c.mantissa, d.mantissa);
        let q0 = queries[q.x + m];
        let q1 = queries[q.y + m];
        let q2 = queries[q.z + m];
        let q3 = queries[q.w + m];
        sums += mat4x4f(
            q0.mantissa * mantissas * exp2_int4(exponents + q0.exponent - top0),
            q1.mantissa * mantissas * exp2_int4(exponents + q1.exponent - top1),
            q2.mantissa * mantissas * exp2_int4(exponents + q2.exponent - top2),
            q3.mantissa * mantissas * exp2_int4(exponents + q3.exponent - top3),
        );
    }
    store(of_tile, query, key, tile.count, sums[0], top0);
    store(of_tile, query + 1u, key, tile.count, sums[1], top1);
    store(of_tile, query + 2u, key, tile.count, sums[2], top2);
    store(of_tile, query + 3u, key, tile.count, sums[3], top3);
}

fn store(of_tile: u32, query: u32, key: u32, count: u32, sums: vec4f, tops: vec4i) {
    if query >= count {
        return;
    }
    let to = (of_tile * sizes.tile_rows + query) * sizes.tile_rows + key;
    for (var j = 0u; j < 4u; j++) {
        if key + j <= query {
            scores[to + j] = Feature(sums[j], tops[j]);
        }
    }
}
