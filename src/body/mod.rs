//! The bodies of both directions.

mod drain;
mod ending;
mod ends;
mod exchange;
mod request;
mod responder;
mod response;
mod silence;
mod unread;
mod watch;

pub(crate) use self::{
    ending::Ending,
    exchange::{BodyEnd, Exchange, HttpReservation, Transfer},
    request::BodyRules,
    responder::Responder,
    silence::Silence,
    unread::{Unread, WhenDropped},
    watch::Watch,
};
pub use self::{request::MeteredBody, response::ResponseBody};
