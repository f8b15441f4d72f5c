//! Sums of gradients of a map's parameters over the batch heads of a call, in their order.
//! BH: batch entries times heads, those of one group.

use crate::batch_heads::{BatchHeads, Call};
use protperf_core::{MapGradients, Parameters, Result, Side, Stored};

/// A gradient for each set of parameters.
pub struct MapSums(Vec<Parameters<Vec<f64>>>);

/// What the device found for one side of some batch heads.
pub struct SideGradients<'a> {
    pub side: Side,
    /// Of directions and constants, `[BH,blocks,P,D+1]`.
    pub parameters: &'a [f32],
    /// Of h, `[BH,rows]`.
    pub norms: &'a [f32],
    /// What gradients of directions and constants are multiplied with.
    pub by: f64,
    /// What those of h are, of each segment.
    pub by_segment: &'a [f64],
}

impl MapSums {
    /// All zeros.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new<T: Stored>(call: &Call<'_, T>) -> Result<Self> {
        let zeros = |set| call.args.map.parameters(set, call.shape.head_dim)?.zeros_like();
        Ok(MapSums((0..call.map.is_bad.len()).map(zeros).collect::<Result<_>>()?))
    }

    /// Adds what one side of a batch head gives, times powers of two; `at` is the batch head within its group.
    pub fn add<T: Stored>(
        &mut self,
        call: &Call<'_, T>,
        batch_heads: &BatchHeads,
        at: usize,
        found: &SideGradients<'_>,
    ) {
        let by = found.by;
        let (d, scale) = (call.shape.head_dim, call.map.input_scale);
        let sums = &mut self.0[call.set_of(batch_heads.range.start + at)];
        let (directions, constants) = match found.side {
            Side::Query => (&mut sums.query_directions, &mut sums.query_constants),
            Side::Key => (sums.key_directions.as_mut().unwrap_or(&mut sums.query_directions), &mut sums.key_constants),
        };
        let of_batch_head = found.parameters.len() / batch_heads.range.len();
        for block in
            found.parameters[at * of_batch_head..][..of_batch_head].chunks_exact(call.shape.num_projections * (d + 1))
        {
            for (row, to) in block.chunks_exact(d + 1).zip(directions.chunks_exact_mut(d)) {
                to.iter_mut().zip(row).for_each(|(to, &x)| *to += f64::from(x) * by * scale);
            }
            let last = block.chunks_exact(d + 1).map(|row| f64::from(row[d]));
            constants.iter_mut().flatten().zip(last).for_each(|(to, x)| *to += x * by);
        }
        if let (Side::Key, Some(quadratic)) = (found.side, &mut sums.key_quadratic) {
            let len = call.shape.kv_len;
            let limit = call.map.input_limit();
            let keys = call.segments[1].iter().zip(found.by_segment);
            for (key, by) in keys.flat_map(|(keys, &by)| keys.clone().map(move |key| (key, by))) {
                let dh = found.norms[at * len + key];
                let x = &batch_heads.keys[(at * len + key) * d..][..d];
                for (to, &x) in quadratic.iter_mut().zip(x) {
                    let y = f64::from(x.clamp(-limit, limit)) * scale;
                    *to += 0.5 * f64::from(dh) * by * y * y;
                }
            }
        }
    }

    /// Makes NaN of all gradients of the set that a batch head uses.
    pub fn spoil<T: Stored>(&mut self, call: &Call<'_, T>, batch_head: usize) {
        self.0[call.set_of(batch_head)].fields_mut().for_each(|field| field.fill(f64::NAN));
    }

    /// Carries the gradients back to what the parameters were made from.
    ///
    /// # Errors
    /// As [`protperf_core::MapArgs::write_gradients`].
    pub fn write<T: Stored>(&self, call: &Call<'_, T>, to: MapGradients<'_>) -> Result<()> {
        call.args.map.write_gradients(&self.0, to)
    }
}
