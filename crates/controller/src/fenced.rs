//! A store that takes no write of a controller that does not lead any more.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use testudo_model::{CertificateRequest, Kind, Object};
use testudo_store::{Applied, Listing, Requester, Store, StoreError, Watch};

use crate::safe::Fence;

/// How often it is asked while a write goes on.
const LOOK: Duration = Duration::from_millis(250);

/// Asks before every single write and before each step of one that takes several calls, and gives one up that
/// is not answered when the lead ends; reads pass. So the last call is begun, and the last answer waited for, while
/// the Lease stands: a leader that does not renew stops five seconds before others may begin.
#[derive(Clone)]
pub(crate) struct Fenced<S> {
    pub(crate) store: S,
    pub(crate) fence: Fence,
}

impl<S: Store> Fenced<S> {
    fn may_write(&self) -> Result<(), StoreError> {
        match self.fence.is_open() {
            true => Ok(()),
            false => Err(StoreError::Unavailable {
                what: "the lead is lost".to_owned(),
                remedy: "nothing is written".to_owned(),
            }),
        }
    }

    /// Does a write while the fence is open.
    async fn guard<T>(
        &self,
        write: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut write = pin!(write);
        let mut guarded = pin!(poll_fn(|context| match self.may_write() {
            Ok(()) => write.as_mut().poll(context),
            Err(lost) => Poll::Ready(Err(lost)),
        }));
        loop {
            if let Ok(done) = tokio::time::timeout(LOOK, guarded.as_mut()).await {
                return done;
            }
        }
    }
}

impl<S: Store> Store for Fenced<S> {
    async fn get<K: Kind>(&self, name: &str) -> Result<Option<Object<K>>, StoreError> {
        self.store.get(name).await
    }

    async fn list<K: Kind>(&self) -> Result<Listing<K>, StoreError> {
        self.store.list().await
    }

    async fn create<K: Kind>(&self, object: Object<K>) -> Result<Object<K>, StoreError> {
        self.guard(self.store.create(object)).await
    }

    async fn apply<K: Kind>(&self, object: Object<K>) -> Result<Applied<K>, StoreError> {
        self.guard(self.store.apply(object)).await
    }

    async fn update_status<K: Kind>(&self, object: &Object<K>) -> Result<Object<K>, StoreError> {
        self.guard(self.store.update_status(object)).await
    }

    async fn delete<K: Kind>(&self, name: &str) -> Result<bool, StoreError> {
        self.guard(self.store.delete::<K>(name)).await
    }

    async fn delete_seen<K: Kind>(&self, object: &Object<K>) -> Result<bool, StoreError> {
        self.guard(self.store.delete_seen(object)).await
    }

    async fn watch<K: Kind>(&self) -> Result<Watch<K>, StoreError> {
        self.store.watch().await
    }

    async fn requester(&self, request: &CertificateRequest) -> Result<Requester, StoreError> {
        self.store.requester(request).await
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use testudo_model::policy::EncryptionPolicyKind;
    use testudo_model::{EncryptionPolicy, EncryptionPolicySpec};
    use testudo_store::DirStore;

    use super::*;

    /// A store of one who leads until the word beside it says otherwise.
    fn leading(dir: &Path) -> (Fenced<DirStore>, Arc<AtomicBool>) {
        let leads = Arc::new(AtomicBool::new(true));
        let ask = Arc::clone(&leads);
        let store = Fenced {
            store: DirStore::open(dir).unwrap(),
            fence: Fence(Arc::new(move || ask.load(Ordering::Relaxed))),
        };
        (store, leads)
    }

    #[tokio::test]
    async fn who_does_not_lead_reads_and_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (store, leads) = leading(dir.path());
        let policy = EncryptionPolicy::new("cluster", EncryptionPolicySpec::default());
        let mut made = store.create(policy.clone()).await.unwrap();
        leads.store(false, Ordering::Relaxed);
        made.status.nodes = 7;
        let deleted = store.delete::<EncryptionPolicyKind>("cluster").await;
        let deleted_seen = store.delete_seen(&made).await;
        for refused in [
            store.create(policy.clone()).await.map(drop),
            store.apply(policy).await.map(drop),
            store.update_status(&made).await.map(drop),
            deleted.map(drop),
            deleted_seen.map(drop),
        ] {
            let error = refused.unwrap_err();
            assert!(error.to_string().contains("the lead is lost"), "{error}");
        }
        let read = store.get::<EncryptionPolicyKind>("cluster").await.unwrap();
        assert_eq!(read.unwrap().status.nodes, 0);
    }

    #[tokio::test]
    async fn a_write_that_goes_on_when_the_lead_ends_does_nothing_more() {
        let dir = tempfile::tempdir().unwrap();
        let (store, leads) = leading(dir.path());
        // The first call is refused and tried again; meanwhile the lead ends.
        let again = AtomicBool::new(false);
        let retries = store.guard(async {
            leads.store(false, Ordering::Relaxed);
            tokio::task::yield_now().await;
            again.store(true, Ordering::Relaxed);
            Ok(())
        });
        assert!(retries.await.is_err());
        assert!(!again.load(Ordering::Relaxed));
        // One that is never answered.
        leads.store(true, Ordering::Relaxed);
        let hangs = store.guard(async {
            leads.store(false, Ordering::Relaxed);
            std::future::pending::<Result<(), StoreError>>().await
        });
        let given_up = tokio::time::timeout(Duration::from_secs(20), hangs).await;
        assert!(given_up.unwrap().is_err());
    }
}
