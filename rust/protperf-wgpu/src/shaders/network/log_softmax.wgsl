// Logits to log-probabilities, nats, in their place. An invocation makes one row.

// [rows, vocabulary], padded
@group(0) @binding(1) var<storage, read_write> logits: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let row = invocation(group, local);
    if row >= extents.invocations {
        return;
    }
    let first = row * extents.inputs * 4u;
    var top = logits[first];
    for (var i = 1u; i < extents.width; i++) {
        top = max(top, logits[first + i]);
    }
    var sum = 0.0;
    for (var i = 0u; i < extents.width; i++) {
        sum += exp_negative(logits[first + i] - top);
    }
    // The built-in logarithm is only near; a step of Newton's method makes it right.
    let near = log(sum);
    let total = near + (sum * exp_negative(-near) - 1.0);
    for (var i = 0u; i < extents.width; i++) {
        logits[first + i] = logits[first + i] - top - total;
    }
}
