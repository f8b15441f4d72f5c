// What the blocks of each pool make together: a mean, the largest numbers, or a mean with weights. An invocation makes
// four numbers.

// The blocks of a pool, and its rows.
struct Pool {
    kind: u32,
    first: u32,
    count: u32,
    rows: u32,
}

// [blocks, C]
@group(0) @binding(1) var<storage, read> sums: array<vec4f>;
// top and the sum of weights [blocks]
@group(0) @binding(2) var<storage, read> weights: array<vec2f>;
// [pools]
@group(0) @binding(3) var<storage, read> pools: array<Pool>;
// [pools, C]
@group(0) @binding(4) var<storage, read_write> out: array<vec4f>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= extents.invocations {
        return;
    }
    let column = at % extents.inputs;
    let pool = pools[at / extents.inputs];
    if pool.count == 0u {
        return;
    }
    let first = pool.first * extents.inputs + column;
    var found = sums[first];
    if pool.kind == MEAN {
        for (var i = 1u; i < pool.count; i++) {
            found += sums[first + i * extents.inputs];
        }
        found /= f32(pool.rows);
    } else if pool.kind == MAX {
        for (var i = 1u; i < pool.count; i++) {
            found = max(found, sums[first + i * extents.inputs]);
        }
    } else {
        var top = weights[pool.first].x;
        for (var i = 1u; i < pool.count; i++) {
            top = max(top, weights[pool.first + i].x);
        }
        found = vec4f();
        var total = 0.0;
        for (var i = 0u; i < pool.count; i++) {
            let of_block = weights[pool.first + i];
            let scale = exp_negative(of_block.x - top);
            found += scale * sums[first + i * extents.inputs];
            total += scale * of_block.y;
        }
        found /= total;
    }
    out[at] = found;
}
