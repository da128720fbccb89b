//! D.
pub mod follow;
pub mod observe;
pub mod work;
