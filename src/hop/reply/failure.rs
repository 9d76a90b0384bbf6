//! Why a request failed, read from its reply.

use crate::hop::reply::Tree;
use crate::traces::{Failure, Origin};

impl Tree {
    /// How the request failed; `None` when it did not.
    pub fn failure(&self) -> Option<Failure> {
        let mut failure = Failure { status: Some(self.status), ..Failure::default() };
        self.visit(&mut failure, self.status >= 400);
        (self.status >= 400).then_some(failure)
    }

    /// Notes who was reached, and where `failed` hops have their error from.
    fn visit(&self, failure: &mut Failure, failed: bool) {
        failure.reached.push(self.service.as_str().into());
        let injected = self.injected.as_ref().is_some_and(|injected| injected.abort_status == Some(self.status));
        let mut passed_on = false;
        for call in &self.upstreams {
            // A redirect is an error of the call and no reply.
            let call_failed = call.error.is_some() || call.status.is_none_or(|status| status >= 400);
            passed_on |= call_failed;
            match &call.reply {
                Some(reply) => reply.visit(failure, failed && call_failed && reply.status >= 400),
                None if failed && call_failed => failure.origins.push(Origin::NoAnswer {
                    caller: self.service.as_str().into(),
                    callee: call.url.rsplit('/').next().filter(|name| !name.is_empty()).map(Box::from),
                    why: call.error.clone().unwrap_or_else(|| "no reply".to_owned()).into(),
                    injected: false,
                }),
                None => {}
            }
            for reply in &call.embedded {
                reply.visit(failure, false);
            }
        }
        if failed && (injected || !passed_on) {
            failure.origins.push(Origin::Answered { service: self.service.as_str().into(), status: self.status, injected });
        }
    }
}
