// Tokens to the residual stream: x_n = embedding[token_n] + modes[mode]. An invocation makes four numbers.

// [rows]
@group(0) @binding(1) var<storage, read> tokens: array<u32>;
// [vocabulary, C]
@group(0) @binding(2) var<storage, read> embedding: array<vec4f>;
// [2, C]
@group(0) @binding(3) var<storage, read> modes: array<vec4f>;
// [rows, C]
@group(0) @binding(4) var<storage, read_write> x: array<vec4f>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= extents.invocations {
        return;
    }
    let column = at % extents.outputs;
    let token = tokens[at / extents.outputs];
    x[at] = embedding[token * extents.outputs + column] + modes[extents.mode * extents.outputs + column];
}
