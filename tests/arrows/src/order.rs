//! Which modules may import which.

/// The layers of a crate, and the exceptions from them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Order<'a> {
    /// From bottom to top. A module imports from lower layers only. A name that is not a module yet is ignored.
    pub layers: &'a [&'a [&'a str]],
    /// Imports inside of one layer. Every exception has to be used.
    pub exceptions: &'a [Exception<'a>],
}

/// Allows one module to import another of its own layer.
#[derive(Clone, Copy, Debug)]
pub struct Exception<'a> {
    /// The module that imports.
    pub from: &'a str,
    /// The module that is imported.
    pub to: &'a str,
    /// Why these two belong together.
    pub reason: &'a str,
}

impl Order<'_> {
    /// The layer of a module, counted from the bottom.
    pub(crate) fn layer(&self, module: &str) -> Option<usize> {
        self.layers.iter().position(|layer| layer.contains(&module))
    }

    pub(crate) fn exception(&self, from: &str, to: &str) -> Option<usize> {
        self.exceptions
            .iter()
            .position(|exception| exception.from == from && exception.to == to)
    }
}
