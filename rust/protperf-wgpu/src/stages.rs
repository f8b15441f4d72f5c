//! The stages of a pass over some batch heads, each one a shader with its sizes.
//! BH: batch entries times heads, those of one group.

use crate::error::GpuError;
use crate::kernels::{Kernel, Sizes};
use crate::maps::{EXPONENTIAL, TRIGONOMETRIC};
use crate::memory::OnDevice;
use crate::recorder::{GROUP, Recorder};
use crate::tiles::Tiling;
use protperf_core::Side;
use std::f64::consts::LN_2;
use std::ops::Range;

type Result<T> = std::result::Result<T, GpuError>;

/// Bytes of a feature, and of a score.
const FEATURE: u64 = 8;
/// Rows that a workgroup makes: the twin of `ROWS` in `shaders/project.wgsl` and others.
const GROUP_ROWS: u32 = 64;
/// Columns of values that it makes: the twin of `COLUMNS` in `shaders/read.wgsl` and `summarize.wgsl`.
const GROUP_COLUMNS: u32 = 32;
/// How far one invocation counts in its longest loop; one driver stops all loops of an invocation together at 65,535.
const MAX_COUNT: usize = 50_000;
/// Rows whose gradients of parameters one invocation adds.
const PARAMETER_ROWS: usize = 1024;

/// A pass over some batch heads that is being recorded.
pub struct Stages<'r, 'a> {
    pub recorder: &'r mut Recorder<'a>,
    base: Sizes,
    causal: bool,
    sets: &'r OnDevice,
}

/// What the batch heads of a pass have in common.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// D.
    pub head_dim: usize,
    /// P.
    pub projections: usize,
    /// F.
    pub features: usize,
    /// E + 1.
    pub width: usize,
    pub family: u32,
    pub epsilon: f32,
    pub input_limit: f32,
    pub causal: bool,
}

/// One side of the batch heads: its rows, the parameters that make its features, and how the rows are cut.
pub struct SideRows<'b> {
    pub side: Side,
    /// `[BH,rows,D]`.
    pub inputs: &'b OnDevice,
    /// As [`crate::maps::Map::packed`].
    pub parameters: &'b OnDevice,
    pub cut: &'b Cut,
    pub norm_factor: f32,
    pub norm_sign: f32,
}

/// How the rows of every batch head are cut, as the device knows it.
pub struct Cut {
    num_rows: usize,
    tiling: Tiling,
    tiles: OnDevice,
    segments: OnDevice,
}

/// States before each tile, in the order of the walk, and after the last.
pub struct States {
    before: OnDevice,
    pub last: OnDevice,
}

/// Rows `[BH,rows,E+1]` of ones and values, or of what takes their place.
#[derive(Clone, Copy)]
pub struct Values<'b> {
    pub rows: &'b OnDevice,
    /// The powers of two that the values of each row are over, `[BH,rows]`, which only grow along a segment; `None`
    /// where they are all alike. Sums of values are over such powers then: see the shaders.
    pub powers: Option<&'b OnDevice>,
}

/// Which side a stage works for.
#[derive(Clone, Copy)]
pub struct Reader<'b> {
    pub rows: &'b SideRows<'b>,
    pub features: &'b OnDevice,
    /// The state of the other side.
    pub states: &'b States,
}

impl Cut {
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::TooMany`].
    pub fn new(recorder: &mut Recorder<'_>, segments: &[Range<usize>], causal: bool) -> Result<Self> {
        let tiling = Tiling::new(segments, causal);
        let longest = tiling.segments.iter().map(|[_, count]| *count as usize).max().unwrap_or(0);
        check_count("positions", longest * tiling.rows, MAX_COUNT * tiling.rows)?;
        Ok(Cut {
            num_rows: segments.last().map_or(0, |last| last.end),
            tiles: recorder.upload("tiles", &tiling.tiles)?,
            segments: recorder.upload("segments", &tiling.segments)?,
            tiling,
        })
    }

    /// How the rows are cut.
    pub fn tiling(&self) -> &Tiling {
        &self.tiling
    }

    /// Tiles, and the first tile and the number of tiles of each segment.
    pub fn on_device(&self) -> [&OnDevice; 2] {
        [&self.tiles, &self.segments]
    }
}

impl<'r, 'a> Stages<'r, 'a> {
    /// Stages over batch heads that have each a set of parameters, `[BH]` in `sets`.
    ///
    /// # Errors
    /// [`GpuError::TooMany`].
    pub fn new(
        recorder: &'r mut Recorder<'a>,
        pass: &Pass,
        num_batch_heads: usize,
        sets: &'r OnDevice,
    ) -> Result<Self> {
        check_count("features", pass.features, MAX_COUNT / 2)?;
        check_count("columns of q and v", pass.head_dim.max(pass.width), MAX_COUNT)?;
        let base = Sizes {
            batch_heads: num_batch_heads as u32,
            head_dim: pass.head_dim as u32,
            projections: pass.projections as u32,
            features: pass.features as u32,
            width: pass.width as u32,
            family: pass.family,
            epsilon: pass.epsilon,
            input_limit: pass.input_limit,
            ..Sizes::default()
        };
        Ok(Stages { recorder, base, causal: pass.causal, sets })
    }

    /// Features of the rows, with exponents lowered by the shifts `[BH,rows]` where there are any.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`].
    pub fn project(&mut self, rows: &SideRows<'_>, shifts: Option<&OnDevice>) -> Result<OnDevice> {
        self.project_in_mode(rows, shifts, 0)
    }

    /// Slopes of an activation over the powers of two that its features carry; no more than a binding for others.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`].
    pub fn slopes(&mut self, rows: &SideRows<'_>) -> Result<OnDevice> {
        if [EXPONENTIAL, TRIGONOMETRIC].contains(&self.base.family) {
            return self.recorder.scratch("slopes", 0);
        }
        self.project_in_mode(rows, None, 1)
    }

    fn project_in_mode(&mut self, rows: &SideRows<'_>, shifts: Option<&OnDevice>, mode: u32) -> Result<OnDevice> {
        let features = self.scratch("features", rows.cut.num_rows * self.base.features as usize, FEATURE)?;
        let flag = u32::from(shifts.is_some());
        let sizes = Sizes { mode, flag, factor: rows.norm_factor, ..self.sizes(rows) };
        let tiles = [GROUP, sizes.projections.div_ceil(GROUP_ROWS), sizes.rows.div_ceil(GROUP_ROWS), sizes.batch_heads];
        let bindings = [rows.inputs, rows.parameters, shifts.unwrap_or(self.sets), self.sets, &features];
        self.recorder.dispatch(self.recorder.sharing().project, over(sizes, &tiles), &bindings);
        Ok(features)
    }

    /// States that rows with their values make on top of the first `[BH,segments,F,2+E]`, or of none. Sums of values
    /// of the first states are over the power of the first row of their segment, those of the last over that of its last.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`].
    pub fn states(
        &mut self,
        rows: &SideRows<'_>,
        features: &OnDevice,
        values: Values<'_>,
        first: Option<&OnDevice>,
        reversed: bool,
    ) -> Result<States> {
        debug_assert!(!reversed || values.powers.is_none(), "powers grow in the order of the walk");
        let powers = values.powers.unwrap_or(values.rows);
        let sizes = Sizes { powers: u32::from(values.powers.is_some()), ..self.sizes(rows) };
        let state = (sizes.features * (1 + sizes.width)) as usize;
        let own = self.scratch("states of tiles", rows.cut.tiling.tiles.len() * state, 4)?;
        let tiles =
            [GROUP, groups_of_columns(&sizes), sizes.features.div_ceil(GROUP_ROWS), sizes.tiles, sizes.batch_heads];
        let bindings = [features, values.rows, &rows.cut.tiles, powers, &own];
        self.recorder.dispatch(self.recorder.sharing().summarize, over(sizes, &tiles), &bindings);
        let before = self.scratch("states of tiles", rows.cut.tiling.tiles.len() * state, 4)?;
        let of_segments = (rows.cut.tiling.segments.len() * state) as u64;
        let last = self.recorder.scratch("states", u64::from(self.base.batch_heads) * of_segments * 4)?;
        let states = rows.cut.tiling.segments.len() as u32;
        let sizes = Sizes { mode: u32::from(reversed), flag: u32::from(first.is_some()), states, ..sizes };
        let columns = [sizes.width, sizes.features, states, sizes.batch_heads];
        let walked = [&rows.cut.segments, &rows.cut.tiles, powers];
        let bindings = [&[&own, first.unwrap_or(&own)], &walked[..], &[&before, &last]].concat();
        self.recorder.dispatch(Kernel::Scan, over(sizes, &columns), &bindings);
        Ok(States { before, last })
    }

    /// Products of queries and keys of the same tile, where the call is causal.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`].
    pub fn scores(&mut self, rows: &SideRows<'_>, queries: &OnDevice, keys: &OnDevice) -> Result<OnDevice> {
        let scores = self.pairs(rows, "scores", FEATURE)?;
        if self.causal {
            let sizes = self.sizes(rows);
            self.recorder.dispatch(
                Kernel::Scores,
                over(sizes, &blocks(&sizes)),
                &[queries, keys, &rows.cut.tiles, &scores],
            );
        }
        Ok(scores)
    }

    /// Gradients of [`Stages::scores`].
    ///
    /// # Errors
    /// [`GpuError::TooLarge`].
    pub fn score_gradient(
        &mut self,
        rows: &SideRows<'_>,
        cotangents: &OnDevice,
        values: &OnDevice,
    ) -> Result<OnDevice> {
        let gradients = self.pairs(rows, "gradients of scores", 4)?;
        if self.causal {
            let sizes = self.sizes(rows);
            let bindings = [cotangents, values, &rows.cut.tiles, &gradients];
            self.recorder.dispatch(Kernel::ScoreGradient, over(sizes, &blocks(&sizes)), &bindings);
        }
        Ok(gradients)
    }

    /// Outputs `[BH,rows,E+1]`, of which the first column is not filled, and denominators `[BH,rows,2]`; for keys
    /// gradients of their values `[BH,rows,E+1]`, and no denominators. Outputs are over the powers of values of their
    /// own rows where every query sees the keys up to its own.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`].
    pub fn read(&mut self, reader: Reader<'_>, scores: &OnDevice, values: Values<'_>) -> Result<[OnDevice; 2]> {
        let Reader { rows, features, states } = reader;
        let sizes = Sizes { powers: u32::from(values.powers.is_some()), ..self.reader_sizes(rows) };
        let out = self.scratch("output", rows.cut.num_rows * sizes.width as usize, 4)?;
        let den = self.scratch("denominators", if rows.side == Side::Query { rows.cut.num_rows * 2 } else { 0 }, 4)?;
        let tiles =
            [GROUP, groups_of_columns(&sizes), sizes.tile_rows.div_ceil(GROUP_ROWS), sizes.tiles, sizes.batch_heads];
        let powers = values.powers.unwrap_or(values.rows);
        let bindings = [features, self.state_of(states), &rows.cut.tiles, scores, values.rows, powers, &out, &den];
        self.recorder.dispatch(self.recorder.sharing().read, over(sizes, &tiles), &bindings);
        Ok([out, den])
    }

    /// Gradients of the mantissas of features `[BH,rows,F]`; `values` are those of the reader's own rows, `others`
    /// the features of the other side.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`].
    pub fn feature_gradient(
        &mut self,
        reader: Reader<'_>,
        values: &OnDevice,
        others: &OnDevice,
        score_gradients: &OnDevice,
    ) -> Result<OnDevice> {
        let Reader { rows, features, states } = reader;
        let sizes = self.reader_sizes(rows);
        let gradients = self.scratch("gradients of features", rows.cut.num_rows * sizes.features as usize, 4)?;
        let tiles = [sizes.features.div_ceil(4), sizes.tile_rows.div_ceil(4), sizes.tiles, sizes.batch_heads];
        let bindings = [features, values, self.state_of(states), &rows.cut.tiles, others, score_gradients, &gradients];
        self.recorder.dispatch(Kernel::FeatureGradient, over(sizes, &tiles), &bindings);
        Ok(gradients)
    }

    /// Gradients of the rows `[BH,rows,D]`, of their projections `[BH,rows,P]` and of h `[BH,rows]`.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`].
    pub fn pull_back(
        &mut self,
        rows: &SideRows<'_>,
        features: &OnDevice,
        gradients: &OnDevice,
    ) -> Result<[OnDevice; 3]> {
        let sizes = self.sizes(rows);
        let slopes = self.slopes(rows)?;
        let projections =
            self.scratch("gradients of projections", rows.cut.num_rows * sizes.projections as usize, 4)?;
        let per_row = [sizes.projections, sizes.rows, sizes.batch_heads];
        let bindings = [features, &slopes, gradients, &projections];
        self.recorder.dispatch(Kernel::PullBack, over(sizes, &per_row), &bindings);
        let norms = self.scratch("gradients of norms", rows.cut.num_rows, 4)?;
        let of_norms = Sizes { factor: rows.norm_sign, ..over(sizes, &[sizes.rows, sizes.batch_heads]) };
        self.recorder.dispatch(Kernel::NormGradient, of_norms, &[features, gradients, &norms]);
        let inputs = self.scratch("gradients of rows", rows.cut.num_rows * sizes.head_dim as usize, 4)?;
        let factor = if self.base.family == EXPONENTIAL { LN_2 as f32 } else { 1.0 };
        let tiles = [sizes.head_dim.div_ceil(4), sizes.rows.div_ceil(4), sizes.batch_heads];
        let bindings = [&projections, &norms, rows.inputs, rows.parameters, self.sets, &inputs];
        self.recorder.dispatch(Kernel::InputGradient, Sizes { factor, ..over(sizes, &tiles) }, &bindings);
        Ok([inputs, projections, norms])
    }

    /// Gradients of directions and constants `[BH,blocks,P,D+1]`, to be added over the blocks, where those of
    /// projections are over the powers of two of their rows `[BH,rows]`, if there are any.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`].
    pub fn parameter_gradient(
        &mut self,
        rows: &SideRows<'_>,
        projections: &OnDevice,
        powers: Option<&OnDevice>,
    ) -> Result<OnDevice> {
        let blocks = rows.cut.num_rows.div_ceil(PARAMETER_ROWS);
        let [tiles, tile_rows] = [blocks as u32, PARAMETER_ROWS as u32];
        let sizes = Sizes { tiles, tile_rows, powers: u32::from(powers.is_some()), ..self.sizes(rows) };
        let columns = sizes.head_dim + 1;
        let numbers = blocks * (sizes.projections * columns) as usize;
        let gradients = self.scratch("gradients of the feature map", numbers, 4)?;
        let tiles = [columns.div_ceil(4), sizes.projections.div_ceil(4), sizes.tiles, sizes.batch_heads];
        let bindings = [projections, rows.inputs, powers.unwrap_or(projections), &gradients];
        self.recorder.dispatch(Kernel::ParameterGradient, over(sizes, &tiles), &bindings);
        Ok(gradients)
    }

    /// Memory for some numbers of each batch head.
    fn scratch(&mut self, what: &'static str, per_batch_head: usize, bytes: u64) -> Result<OnDevice> {
        self.recorder.scratch(what, u64::from(self.base.batch_heads) * per_batch_head as u64 * bytes)
    }

    /// Memory for each pair of rows of a tile, where the call is causal.
    fn pairs(&mut self, rows: &SideRows<'_>, what: &'static str, bytes: u64) -> Result<OnDevice> {
        self.scratch(what, if self.causal { rows.cut.tiling.num_pairs() } else { 0 }, bytes)
    }

    fn sizes(&self, rows: &SideRows<'_>) -> Sizes {
        let tiling = &rows.cut.tiling;
        let (tiles, tile_rows) = (tiling.tiles.len() as u32, tiling.rows as u32);
        Sizes { rows: rows.cut.num_rows as u32, tiles, tile_rows, ..self.base }
    }

    fn reader_sizes(&self, rows: &SideRows<'_>) -> Sizes {
        let states = if self.causal { rows.cut.tiling.tiles.len() } else { rows.cut.tiling.segments.len() } as u32;
        let mode = u32::from(rows.side == Side::Key);
        Sizes { states, mode, flag: u32::from(self.causal), ..self.sizes(rows) }
    }

    fn state_of<'b>(&self, states: &'b States) -> &'b OnDevice {
        if self.causal { &states.before } else { &states.last }
    }
}

fn check_count(what: &'static str, found: usize, limit: usize) -> Result<()> {
    if found <= limit { Ok(()) } else { Err(GpuError::TooMany { what, found, limit }) }
}

/// Workgroups for all columns of values; there is one where values have no columns, for the ones.
fn groups_of_columns(sizes: &Sizes) -> u32 {
    (sizes.width - 1).div_ceil(GROUP_COLUMNS).max(1)
}

/// Blocks of 4 queries times 4 keys of every tile.
fn blocks(sizes: &Sizes) -> [u32; 4] {
    let of_tile = sizes.tile_rows.div_ceil(4);
    [of_tile, of_tile, sizes.tiles, sizes.batch_heads]
}

/// The sizes of as many invocations as the product of some counts.
fn over(sizes: Sizes, counts: &[u32]) -> Sizes {
    Sizes { invocations: counts.iter().product(), ..sizes }
}
