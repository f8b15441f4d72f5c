//! A read-only strided 4-D view over a slice, checked once when it is made.

use crate::error::{Error, Result};

/// A strided `[B,H,L,D]` view. Every index inside `shape` is inside `data`: the constructor checks it.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a, T> {
    data: &'a [T],
    offset: usize,
    shape: [usize; 4],
    strides: [isize; 4],
}

impl<'a, T: Copy> TensorRef<'a, T> {
    /// A view of `data` that starts at `offset`; strides count elements and may be zero or negative.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] where an element of the view would lie outside `data`.
    pub fn new(
        argument: &'static str,
        data: &'a [T],
        offset: usize,
        shape: [usize; 4],
        strides: [isize; 4],
    ) -> Result<Self> {
        let view = TensorRef { data, offset, shape, strides };
        if shape.contains(&0) {
            return Ok(view);
        }
        let (mut low, mut high) = (offset as i128, offset as i128);
        for (&n, &stride) in shape.iter().zip(&strides) {
            let reach = (n as i128 - 1) * stride as i128;
            low += reach.min(0);
            high += reach.max(0);
        }
        if low < 0 || high >= data.len() as i128 {
            return Err(Error::shape(argument, "has strides that leave its memory"));
        }
        Ok(view)
    }

    /// A view of a whole contiguous slice.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] where the sizes do not multiply to the slice's length.
    pub fn contiguous(argument: &'static str, data: &'a [T], shape: [usize; 4]) -> Result<Self> {
        let [_, h, l, d] = shape;
        let numel = checked_product(argument, &shape)?;
        if numel != data.len() {
            return Err(Error::shape(argument, format!("has {} elements, its shape needs {numel}", data.len())));
        }
        let strides = [(h * l * d) as isize, (l * d) as isize, d as isize, 1];
        Self::new(argument, data, 0, shape, strides)
    }

    /// Sizes of the four axes.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Steps of the four axes, in elements.
    pub fn strides(&self) -> [isize; 4] {
        self.strides
    }

    /// The element at an index.
    ///
    /// # Panics
    /// Where the index lies outside the shape.
    pub fn get(&self, index: [usize; 4]) -> T {
        assert!(index.iter().zip(&self.shape).all(|(i, n)| i < n), "index {index:?} outside {:?}", self.shape);
        self.data[self.position(index)]
    }

    /// Where in [`TensorRef::data`] an element lies.
    pub fn position(&self, index: [usize; 4]) -> usize {
        let steps = index.iter().zip(&self.strides).map(|(&i, &s)| i as isize * s).sum::<isize>();
        self.offset.wrapping_add_signed(steps)
    }

    /// The memory under the view.
    pub fn data(&self) -> &'a [T] {
        self.data
    }
}

/// The product of sizes.
///
/// # Errors
/// [`Error::SizeOverflow`] where it does not fit in `isize`.
pub fn checked_product(argument: &'static str, sizes: &[usize]) -> Result<usize> {
    sizes
        .iter()
        .try_fold(1usize, |product, &n| product.checked_mul(n))
        .filter(|&product| product <= isize::MAX as usize)
        .ok_or(Error::SizeOverflow { argument })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_that_leaves_its_memory_is_refused() {
        let data = [0f32; 12];
        assert!(TensorRef::new("q", &data, 0, [1, 1, 3, 4], [0, 0, 4, 1]).is_ok());
        assert!(TensorRef::new("q", &data, 1, [1, 1, 3, 4], [0, 0, 4, 1]).is_err());
        assert!(TensorRef::new("q", &data, 11, [1, 1, 3, 4], [0, 0, -4, -1]).is_ok());
        assert!(TensorRef::new("q", &data, 10, [1, 1, 3, 4], [0, 0, -4, -1]).is_err());
        assert!(TensorRef::new("q", &data, 99, [1, 1, 0, 4], [0, 0, 4, 1]).is_ok());
    }

    #[test]
    fn a_product_that_overflows_is_an_error() {
        assert_eq!(checked_product("q", &[1 << 40, 1 << 40]), Err(Error::SizeOverflow { argument: "q" }));
    }
}
