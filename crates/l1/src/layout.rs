//! How the tensors of one chunk lie in its bytes.

use std::fmt;
use std::str::FromStr;

/// The type of a tensor's elements, by torch's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are torch's")]
pub enum DType {
    Bool,
    Uint8,
    Int8,
    Int16,
    Int32,
    Int64,
    Float16,
    Bfloat16,
    Float32,
    Float64,
    Float8E4m3fn,
    Float8E5m2,
}

const DTYPES: [(DType, &str, u64); 12] = [
    (DType::Bool, "bool", 1),
    (DType::Uint8, "uint8", 1),
    (DType::Int8, "int8", 1),
    (DType::Int16, "int16", 2),
    (DType::Int32, "int32", 4),
    (DType::Int64, "int64", 8),
    (DType::Float16, "float16", 2),
    (DType::Bfloat16, "bfloat16", 2),
    (DType::Float32, "float32", 4),
    (DType::Float64, "float64", 8),
    (DType::Float8E4m3fn, "float8_e4m3fn", 1),
    (DType::Float8E5m2, "float8_e5m2", 1),
];

impl DType {
    fn row(self) -> (Self, &'static str, u64) {
        DTYPES[self as usize]
    }

    /// The size of one element in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.row().2
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().1)
    }
}

/// Takes the name with or without `torch.` before it.
impl FromStr for DType {
    type Err = LayoutError;

    fn from_str(text: &str) -> Result<Self, LayoutError> {
        let name = text.strip_prefix("torch.").unwrap_or(text);
        let row = DTYPES.iter().find(|(_, known, _)| *known == name);
        row.map(|row| row.0).ok_or_else(|| LayoutError::UnknownDType(text.to_owned()))
    }
}

/// The tensors of one chunk, one behind the other: `MemoryLayoutDesc`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MemoryLayoutDesc {
    shapes: Vec<Vec<u64>>,
    dtypes: Vec<DType>,
    bytes: u64,
}

/// Why a layout cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// There must be a type for each shape.
    #[error("{shapes} shapes but {dtypes} dtypes: give one dtype a shape")]
    Lengths {
        /// How many shapes there are.
        shapes: usize,
        /// How many types there are.
        dtypes: usize,
    },
    /// A chunk has at least one byte.
    #[error("the layout has no element: every dimension must be at least 1")]
    Empty,
    /// More bytes than can be counted.
    #[error("the layout has more bytes than memory can have")]
    TooLarge,
    /// A chunk is a whole number of tokens.
    #[error("{bytes} bytes a chunk are not a multiple of {tokens} tokens a chunk")]
    Tokens {
        /// Bytes of a chunk.
        bytes: u64,
        /// Tokens of a chunk.
        tokens: u64,
    },
    /// A type that torch does not have, or that holds no KV.
    #[error("{0:?} is no dtype; examples: float16, bfloat16, float8_e4m3fn, uint8")]
    UnknownDType(String),
}

impl MemoryLayoutDesc {
    /// A layout of tensors with these shapes and element types.
    pub fn new(shapes: Vec<Vec<u64>>, dtypes: Vec<DType>) -> Result<Self, LayoutError> {
        if shapes.len() != dtypes.len() {
            return Err(LayoutError::Lengths { shapes: shapes.len(), dtypes: dtypes.len() });
        }
        let tensor = |(shape, dtype): (&Vec<u64>, &DType)| {
            shape.iter().try_fold(dtype.bytes(), |bytes, dimension| bytes.checked_mul(*dimension))
        };
        let bytes = shapes.iter().zip(&dtypes).map(tensor);
        let bytes = bytes.into_iter().try_fold(0_u64, |sum, bytes| sum.checked_add(bytes?));
        match bytes {
            None => Err(LayoutError::TooLarge),
            Some(0) => Err(LayoutError::Empty),
            Some(bytes) => Ok(Self { shapes, dtypes, bytes }),
        }
    }

    /// `bytes` bytes that nobody looks into.
    pub fn opaque(bytes: u64) -> Result<Self, LayoutError> {
        Self::new(vec![vec![bytes]], vec![DType::Uint8])
    }

    /// The tensors' shapes.
    #[must_use]
    pub fn shapes(&self) -> &[Vec<u64>] {
        &self.shapes
    }

    /// The tensors' element types.
    #[must_use]
    pub fn dtypes(&self) -> &[DType] {
        &self.dtypes
    }

    /// Bytes of one chunk.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of one token, for chunks of `tokens` tokens.
    pub const fn bytes_per_token(&self, tokens: u64) -> Result<u64, LayoutError> {
        if tokens == 0 || !self.bytes.is_multiple_of(tokens) {
            return Err(LayoutError::Tokens { bytes: self.bytes, tokens });
        }
        Ok(self.bytes / tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_types_is_in_order() {
        for (index, (dtype, name, _)) in DTYPES.into_iter().enumerate() {
            assert_eq!((dtype as usize, dtype.to_string().as_str()), (index, name));
            assert_eq!(format!("torch.{name}").parse(), Ok(dtype));
        }
        assert!(matches!("complex64".parse::<DType>(), Err(LayoutError::UnknownDType(_))));
    }

    #[test]
    fn bytes_are_of_all_tensors() {
        // Two layers, K and V, 256 tokens, 8 heads of 128; and a scale a token.
        let shapes = vec![vec![2, 2, 256, 8, 128], vec![256]];
        let layout = MemoryLayoutDesc::new(shapes, vec![DType::Bfloat16, DType::Float32]).unwrap();
        assert_eq!(layout.bytes(), 2 * 2 * 256 * 8 * 128 * 2 + 256 * 4);
        assert_eq!(layout.bytes_per_token(256), Ok(2 * 2 * 8 * 128 * 2 + 4));
        let uneven = LayoutError::Tokens { bytes: layout.bytes(), tokens: 255 };
        assert_eq!(layout.bytes_per_token(255), Err(uneven));
        assert!(layout.bytes_per_token(0).is_err());
    }

    #[test]
    fn impossible_layouts_are_refused() {
        let new = MemoryLayoutDesc::new;
        let lengths = LayoutError::Lengths { shapes: 1, dtypes: 0 };
        assert_eq!(new(vec![vec![1]], vec![]), Err(lengths));
        assert_eq!(new(vec![], vec![]), Err(LayoutError::Empty));
        assert_eq!(new(vec![vec![3, 0]], vec![DType::Int8]), Err(LayoutError::Empty));
        let huge = vec![vec![u64::MAX, 2]];
        assert_eq!(new(huge, vec![DType::Int8]), Err(LayoutError::TooLarge));
    }
}
