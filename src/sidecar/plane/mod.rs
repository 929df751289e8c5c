//! What a sidecar knows of its configuration: one value, replaced as a whole on reload.

pub mod given;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::domain::id::BackendName;
use crate::identity::Verifier;
use crate::sidecar::accept::{Limits, tls::Tls};
use crate::sidecar::canonical::{Canonical, Malformed, Rules, canonicalise};
use crate::sidecar::credential::Credentials;
use crate::sidecar::decide::BackendRules;
use crate::sidecar::forward::body::BodyLimits;
use crate::sidecar::forward::response::ResponseRules;
use crate::sidecar::forward::upstream::Upstream;
use crate::sidecar::record::Catalogue;
use crate::sidecar::resolve::ActionMap;

/// One protected backend.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Its place in the recorder's catalogue.
    pub index: usize,
    /// What decides about it.
    pub rules: Arc<BackendRules>,
    /// How its requests are read.
    pub canonical: Rules,
    /// What its calls do; none as long as the control plane has not said so: then none is carried out.
    pub actions: Option<Arc<ActionMap>>,
    /// How it is reached.
    pub upstream: Arc<Upstream>,
    /// What its answers may hold.
    pub response: ResponseRules,
    /// How bodies may come in for it.
    pub body: BodyLimits,
}

/// What one listener offers.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Its name.
    pub name: Arc<str>,
    /// What a connection may do.
    pub limits: Limits,
    /// Its TLS; plain without.
    pub tls: Option<Arc<Tls>>,
    /// The backends behind it, chosen by authority where there are several.
    pub backends: Vec<Arc<Backend>>,
}

/// All of the configuration that calls are handled by.
#[derive(Debug, Clone)]
pub struct Plane {
    /// Who verifies identities.
    pub verifier: Arc<Verifier>,
    /// Where credentials come from.
    pub credentials: Arc<Credentials>,
    /// The listeners, in the order of the configuration.
    pub offers: Vec<Arc<Offer>>,
}

impl Plane {
    /// A backend, as one of the listeners offers it.
    fn backend(&self, name: &BackendName) -> Option<&Arc<Backend>> {
        self.offers.iter().flat_map(|offer| &offer.backends).find(|backend| backend.rules.name == *name)
    }

    /// The names that records and metrics may have; `names` are all backends, in the order of the configuration.
    pub fn catalogue(&self, names: &[BackendName]) -> Catalogue {
        let actions = |name| {
            let map = self.backend(name)?.actions.as_ref()?;
            Some(map.actions().iter().map(|action| action.name.clone()).collect())
        };
        Catalogue::new(names.iter().map(|name| (name.clone(), actions(name).unwrap_or_default())).collect())
    }

    /// The same with another action map for one backend.
    fn with_map(&self, name: &BackendName, map: Option<&Arc<ActionMap>>) -> Self {
        let of = |backend: &Arc<Backend>| match backend.rules.name == *name {
            true => Arc::new(Backend { actions: map.cloned(), ..(**backend).clone() }),
            false => Arc::clone(backend),
        };
        let offer = |offer: &Arc<Offer>| {
            let backends = offer.backends.iter().map(of).collect();
            Arc::new(Offer { backends, ..(**offer).clone() })
        };
        Self { offers: self.offers.iter().map(offer).collect(), ..self.clone() }
    }
}

impl Offer {
    /// Reads a request in its one way, by the rules of the backend it names.
    ///
    /// # Errors
    /// [`Malformed`] when there is no such reading, or it names none of the backends.
    pub fn canonicalise(&self, head: http::request::Parts) -> Result<(&Arc<Backend>, Canonical), Malformed> {
        let backend = self.choose(&head);
        canonicalise(head, &backend.canonical).map(|canonical| (backend, canonical))
    }

    /// The backend that the request names; the first where it names none, whose rules then refuse it.
    fn choose(&self, head: &http::request::Parts) -> &Arc<Backend> {
        let first = &self.backends[0];
        if self.backends.len() == 1 {
            return first;
        }
        let named = match head.uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => head.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()),
        };
        named.and_then(|name| self.backends.iter().find(|b| b.canonical.names(name))).unwrap_or(first)
    }
}
