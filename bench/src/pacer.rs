//! A timer of the kernel: the runtime's own counts milliseconds, which is coarser than what is measured here.

use std::{io, os::fd::OwnedFd};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// Waits for short times.
pub(crate) struct Pacer(AsyncFd<OwnedFd>);

impl Pacer {
    /// Panics outside of a runtime.
    pub(crate) fn new() -> io::Result<Self> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "what replaces it is unsafe; an `OwnedFd` keeps every promise that it asks for"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(Self(timer))
    }

    /// Safe to cancel: setting the timer forgets an earlier expiry.
    pub(crate) async fn pause(&mut self, nanoseconds: u64) -> io::Result<()> {
        let nanoseconds = nanoseconds.max(1);
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: (nanoseconds / 1_000_000_000) as _,
                tv_nsec: (nanoseconds % 1_000_000_000) as _,
            },
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        let mut expiries = [0; 8];
        loop {
            let mut ready = self.0.readable().await?;
            match rustix::io::read(&self.0, &mut expiries) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
