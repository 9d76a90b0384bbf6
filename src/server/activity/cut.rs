//! Why answers end before their end.

/// Why a request was not answered, or not to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cut {
    /// The client closed the connection or reset the stream.
    Client = 1,
    /// The client accepted no byte for `ConnectionOptions::write_timeout`.
    WriteTimeout,
    /// The drain timeout was over.
    DrainTimeout,
    /// The connection waited for the client, and made room for another.
    ConnectionLimit,
    /// A fault that is injected on purpose.
    Fault,
}

impl Cut {
    /// As `error.type` names it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client_closed_request",
            Self::WriteTimeout => "write_timeout",
            Self::DrainTimeout => "drain_timeout",
            Self::ConnectionLimit => "connection_limit",
            Self::Fault => "injected_fault",
        }
    }
}
