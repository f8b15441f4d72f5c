// The sum of the rows of a block, or the largest number along each axis; weighted with e^(logit - top), whose sum goes
// along. An invocation makes four numbers.

// [rows, C]
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
// [blocks]
@group(0) @binding(2) var<storage, read> blocks: array<Block>;
// [blocks, BLOCK]
@group(0) @binding(3) var<storage, read> logits: array<f32>;
// [blocks, C]
@group(0) @binding(4) var<storage, read_write> sums: array<vec4f>;
// top and the sum of weights [blocks]
@group(0) @binding(5) var<storage, read_write> weights: array<vec2f>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= extents.invocations {
        return;
    }
    let column = at % extents.inputs;
    let of_block = at / extents.inputs;
    let block = blocks[of_block];
    let first = block.first * extents.inputs + column;
    var found = x[first];
    if block.kind == MEAN {
        for (var i = 1u; i < block.count; i++) {
            found += x[first + i * extents.inputs];
        }
    } else if block.kind == MAX {
        for (var i = 1u; i < block.count; i++) {
            found = max(found, x[first + i * extents.inputs]);
        }
    } else {
        var top = logits[of_block * BLOCK];
        for (var i = 1u; i < block.count; i++) {
            top = max(top, logits[of_block * BLOCK + i]);
        }
        found = vec4f();
        var total = 0.0;
        for (var i = 0u; i < block.count; i++) {
            let weight = exp_negative(logits[of_block * BLOCK + i] - top);
            found += weight * x[first + i * extents.inputs];
            total += weight;
        }
        if column == 0u {
            weights[of_block] = vec2f(top, total);
        }
    }
    sums[at] = found;
}
