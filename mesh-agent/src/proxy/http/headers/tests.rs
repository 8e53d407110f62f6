//! What real bytes on a real server become, and the fields one by one.

mod fields;
mod http1;
mod http2;
mod served;
