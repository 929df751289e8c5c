//! Action maps that a control plane gives.
//!
//! A call loads the plane once and goes on by what it loaded, so it is carried out by the map that resolved it. Whoever
//! replaces the plane, or a map in it, does so one after another: neither undoes the other.
//!
//! What cannot be used leaves the last good map in force. Where there is none, and where a control plane says that there is
//! none any more, the backend's calls are denied. Nothing that comes here relaxes how requests are read: a map that needs
//! what this sidecar's own settings refuse is refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::Plane;
use crate::action_map::{BackendBundle, NamedMap};
use crate::domain::id::BackendName;
use crate::sidecar::record::Recorder;
use crate::sidecar::resolve::ActionMap;
use crate::sync::Bundle;

/// The plane in force, and those of its action maps that a control plane gives.
#[derive(Debug)]
pub struct GivenMaps {
    plane: Arc<ArcSwap<Plane>>,
    recorder: Arc<Recorder>,
    /// Every backend, in the order of the configuration.
    names: Vec<BackendName>,
    /// The backends whose maps are given.
    given: Mutex<BTreeMap<BackendName, Given>>,
}

/// What came for one backend.
#[derive(Debug, Default)]
struct Given {
    held: Option<Held>,
    /// What came last, where that is not in force.
    refused: Option<Refused>,
}

/// A map in force.
#[derive(Debug)]
struct Held {
    map: Arc<ActionMap>,
    name: String,
    digest: Arc<str>,
}

/// A bundle that cannot be used.
#[derive(Debug)]
struct Refused {
    digest: Arc<str>,
    content: Bytes,
    error: String,
}

/// How it stands with the map of one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The backend.
    pub backend: BackendName,
    /// The name and the digest of the map in force; none where all calls are denied for want of one.
    pub held: Option<(String, Arc<str>)>,
    /// Why what came last is not in force.
    pub error: Option<String>,
}

impl GivenMaps {
    /// The maps of `given` are to come. `names` are all backends, in the order of the configuration.
    pub fn new(
        plane: Arc<ArcSwap<Plane>>,
        recorder: Arc<Recorder>,
        names: Vec<BackendName>,
        given: impl Iterator<Item = BackendName>,
    ) -> Self {
        let given = Mutex::new(given.map(|name| (name, Given::default())).collect());
        Self { plane, recorder, names, given }
    }

    /// Puts what a control plane says of a backend in force. Returns whether the map is another than before; passes over
    /// backends whose maps are not given. Compiling a large map takes milliseconds: not for a thread that carries calls.
    ///
    /// # Errors
    /// Why it cannot be used, and what is in force instead.
    pub fn take(&self, bundle: &Bundle) -> Result<bool, String> {
        let mut given = self.given();
        let mut all = given.iter_mut();
        let Some((name, slot)) = all.find(|(name, _)| Some(name.as_str()) == bundle.backend()) else {
            return Ok(false);
        };
        self.offer(name, slot, &bundle.digest, &bundle.content)
    }

    /// Replaces the plane by one of a changed configuration, which takes over the maps. What could not be used before may
    /// be fit for the new settings: it is tried again.
    ///
    /// # Errors
    /// What a map in force needs and the new settings refuse; the old plane stays.
    pub fn replace(&self, mut plane: Plane) -> Result<(), String> {
        let mut given = self.given();
        for (name, slot) in given.iter() {
            let Some(held) = &slot.held else { continue };
            fits(&plane, name, &held.name, &held.map)?;
            plane = plane.with_map(name, Some(&held.map));
        }
        self.store(plane);
        for (name, slot) in given.iter_mut() {
            let Some(Refused { digest, content, .. }) = slot.refused.take() else { continue };
            if self.offer(name, slot, &digest, &content) == Ok(true) {
                tracing::info!(backend = %name, %digest, "the action map that was refused before is in force");
            }
        }
        Ok(())
    }

    /// How it stands with each map that is given.
    pub fn standing(&self) -> Vec<Standing> {
        let given = self.given();
        let one = |(name, slot): (&BackendName, &Given)| Standing {
            backend: name.clone(),
            held: slot.held.as_ref().map(|held| (held.name.clone(), Arc::clone(&held.digest))),
            error: slot.refused.as_ref().map(|refused| refused.error.clone()),
        };
        given.iter().map(one).collect()
    }

    fn given(&self) -> MutexGuard<'_, BTreeMap<BackendName, Given>> {
        // Nothing panics while it is held; if it ever did, the plane is whole all the same.
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self, plane: Plane) {
        let catalogue = plane.catalogue(&self.names);
        self.plane.store(Arc::new(plane));
        self.recorder.recatalogue(catalogue);
    }

    fn offer(
        &self,
        backend: &BackendName,
        slot: &mut Given,
        digest: &Arc<str>,
        content: &Bytes,
    ) -> Result<bool, String> {
        if slot.held.as_ref().is_some_and(|held| held.digest == *digest) {
            slot.refused = None;
            return Ok(false);
        }
        let plane = self.plane.load();
        let (held, error) = match read(&plane, backend, digest, content) {
            Ok(Some(held)) => (Some(held), None),
            Ok(None) => {
                let why = format!("the Backend `{backend}` names no action map");
                (None, Some(format!("{why}: its calls are denied until it does")))
            }
            Err(error) if slot.held.is_some() => {
                let error = format!("{error}; the last good one stays in force");
                slot.refused =
                    Some(Refused { digest: Arc::clone(digest), content: content.clone(), error: error.clone() });
                return Err(error);
            }
            Err(error) => (None, Some(format!("{error}; there is none before it, so the backend's calls are denied"))),
        };
        let changes = held.is_some() || slot.held.is_some();
        if changes {
            self.store(plane.with_map(backend, held.as_ref().map(|held| &held.map)));
        }
        slot.held = held;
        let refused = |error| Refused { digest: Arc::clone(digest), content: content.clone(), error };
        slot.refused = error.clone().map(refused);
        error.map_or(Ok(changes), Err)
    }
}

/// The map of a bundle, compiled and fit for this sidecar; none where the bundle says that there is none.
fn read(plane: &Plane, backend: &BackendName, digest: &Arc<str>, content: &[u8]) -> Result<Option<Held>, String> {
    let Some(NamedMap { name, map }) = BackendBundle::unpack(digest, content)?.action_map else { return Ok(None) };
    let map = ActionMap::compile(&map).map_err(|errors| format!("ActionMap `{}`: {errors}", name.escape_debug()))?;
    fits(plane, backend, &name, &map)?;
    Ok(Some(Held { map: Arc::new(map), name, digest: Arc::clone(digest) }))
}

/// Whether the sidecar's own settings let through what the map needs.
fn fits(plane: &Plane, backend: &BackendName, name: &str, map: &ActionMap) -> Result<(), String> {
    // It is the same on every listener.
    let Some(found) = plane.backend(backend) else { return Ok(()) };
    let kept = found.canonical.relaxations();
    match map.requires().lacking(kept.encoded_slash_keep, kept.path_params_keep).next() {
        None => Ok(()),
        Some(lacking) => Err(format!(
            "ActionMap `{}` cannot work while `canonical.{lacking}` is refused: write `canonical: {{{lacking}: keep}}` for the backend `{backend}` in the sidecar's file",
            name.escape_debug()
        )),
    }
}
