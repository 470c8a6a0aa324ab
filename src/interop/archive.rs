//! Named arrays in memory, as a safetensors file holds them.

use std::collections::BTreeMap;

/// What a safetensors file holds: arrays and strings, both by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Archive {
    /// The arrays.
    pub tensors: BTreeMap<String, Array>,
    /// The strings stored beside them; empty if the file has none.
    pub metadata: BTreeMap<String, String>,
}

impl Archive {
    /// The arrays and strings whose names begin with `prefix`, without it: what belongs to one module of a model. In
    /// the state dict of a PyTorch module with an attribute `rnn`, the prefix of that layer is `rnn.`.
    #[must_use]
    pub fn under(&self, prefix: &str) -> Self {
        Self {
            tensors: under(&self.tensors, prefix),
            metadata: under(&self.metadata, prefix),
        }
    }
}

fn under<T: Clone>(all: &BTreeMap<String, T>, prefix: &str) -> BTreeMap<String, T> {
    let of_module = |(name, value): (&String, &T)| {
        let rest = name.strip_prefix(prefix)?;
        Some((rest.to_owned(), value.clone()))
    };
    all.iter().filter_map(of_module).collect()
}

impl From<BTreeMap<String, Array>> for Archive {
    /// Without metadata.
    fn from(tensors: BTreeMap<String, Array>) -> Self {
        let metadata = BTreeMap::new();
        Self { tensors, metadata }
    }
}

/// An array of any rank in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// The size of each dimension; empty for a single number.
    pub shape: Vec<usize>,
    /// The elements, as many as the product of `shape`.
    pub data: Data,
}

/// The elements of an [`Array`], in the type they have in the file.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// Signed 64-bit integers.
    I64(Vec<i64>),
    /// Unsigned 32-bit integers.
    U32(Vec<u32>),
    /// Bytes.
    U8(Vec<u8>),
}

impl Data {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::U32(values) => values.len(),
            Self::U8(values) => values.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type's name in the format: `F32`, `F64`, `I64`, `U32` or `U8`.
    pub fn dtype(&self) -> &'static str {
        match self {
            Self::F32(_) => "F32",
            Self::F64(_) => "F64",
            Self::I64(_) => "I64",
            Self::U32(_) => "U32",
            Self::U8(_) => "U8",
        }
    }

    /// Bytes per element.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::F64(_) | Self::I64(_) => 8,
            Self::F32(_) | Self::U32(_) => 4,
            Self::U8(_) => 1,
        }
    }
}

impl Array {
    /// The elements as `f64`; exact but for integers beyond 2^53.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::F32(values) => values.iter().map(|&v| f64::from(v)).collect(),
            Data::F64(values) => values.clone(),
            Data::I64(values) => values.iter().map(|&v| v as f64).collect(),
            Data::U32(values) => values.iter().map(|&v| f64::from(v)).collect(),
            Data::U8(values) => values.iter().map(|&v| f64::from(v)).collect(),
        }
    }

    /// The elements if they are 32-bit floats.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(values) => Some(values),
            _ => None,
        }
    }

    /// The elements if they are 64-bit floats.
    pub fn as_f64(&self) -> Option<&[f64]> {
        match &self.data {
            Data::F64(values) => Some(values),
            _ => None,
        }
    }

    /// The elements if they are signed 64-bit integers.
    pub fn as_i64(&self) -> Option<&[i64]> {
        match &self.data {
            Data::I64(values) => Some(values),
            _ => None,
        }
    }

    /// The elements if they are unsigned 32-bit integers.
    pub fn as_u32(&self) -> Option<&[u32]> {
        match &self.data {
            Data::U32(values) => Some(values),
            _ => None,
        }
    }

    /// The elements if they are bytes.
    pub fn as_u8(&self) -> Option<&[u8]> {
        match &self.data {
            Data::U8(values) => Some(values),
            _ => None,
        }
    }
}

/// The product of the sizes, if a `usize` can say it.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1_usize, |n, &size| n.checked_mul(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accessors_give_their_own_type_only() {
        let all = [
            Data::F32(vec![0.5, -2.0]),
            Data::F64(vec![0.25, 1.0]),
            Data::I64(vec![i64::MIN, 7]),
            Data::U32(vec![u32::MAX, 3]),
            Data::U8(vec![0, 255]),
        ]
        .map(|data| Array {
            shape: vec![2],
            data,
        });
        assert_eq!(all[0].as_f32(), Some(&[0.5, -2.0][..]));
        assert_eq!(all[1].as_f64(), Some(&[0.25, 1.0][..]));
        assert_eq!(all[2].as_i64(), Some(&[i64::MIN, 7][..]));
        assert_eq!(all[3].as_u32(), Some(&[u32::MAX, 3][..]));
        assert_eq!(all[4].as_u8(), Some(&[0, 255][..]));
        for array in &all {
            let given = [
                array.as_f32().is_some(),
                array.as_f64().is_some(),
                array.as_i64().is_some(),
                array.as_u32().is_some(),
                array.as_u8().is_some(),
            ];
            let dtype = array.data.dtype();
            assert_eq!(given.iter().filter(|&&given| given).count(), 1, "{dtype}");
            assert_eq!(array.to_f64().len(), array.data.len());
        }
        assert_eq!(all[4].to_f64(), [0.0, 255.0]);
        assert_eq!(all[2].to_f64()[1], 7.0);
    }
}
