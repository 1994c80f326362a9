// SPDX-License-Identifier: MIT
/* Slow motion for QEMU: its clocks run at a fraction of their speed.
 *
 * While a virtual core is idle, QEMU lets the guest's clock follow this machine's; while it executes, the clock counts
 * instructions, and emulating them takes longer than the guest is told. So a guest that works falls behind, and a
 * load that is sent by this machine's clock comes too fast for it. With slower clocks, and a load as much slower, both
 * agree. Preloaded (LD_PRELOAD) into QEMU; the environment variable SLOW says how many times slower, 1 to 9.
 *
 * Without a C library's headers, which the machine may not have; its functions are there when QEMU runs.
 */
struct timespec {
	long seconds, nanoseconds;
};

extern long syscall(long number, ...);
extern char *getenv(const char *name);

#if defined(__x86_64__)
#define SYS_CLOCK_GETTIME 228
#define SYS_PPOLL 271
#elif defined(__aarch64__)
#define SYS_CLOCK_GETTIME 113
#define SYS_PPOLL 73
#else
#error "the numbers of clock_gettime(2) and ppoll(2) are not known for this machine"
#endif

#define SECOND 1000000000l
#define REALTIME 0
#define MONOTONIC 1

static long times_slower(void)
{
	static long slow;

	if (!slow) {
		const char *value = getenv("SLOW");

		slow = value && *value >= '1' && *value <= '9' ? *value - '0' : 1;
	}
	return slow;
}

int clock_gettime(int clock, struct timespec *time)
{
	static long started[2];
	long now;

	if (syscall(SYS_CLOCK_GETTIME, clock, time))
		return -1;
	if (clock != REALTIME && clock != MONOTONIC)
		return 0;
	now = time->seconds * SECOND + time->nanoseconds;
	if (!started[clock])
		started[clock] = now;
	now = started[clock] + (now - started[clock]) / times_slower();
	time->seconds = now / SECOND;
	time->nanoseconds = now % SECOND;
	return 0;
}

int ppoll(void *descriptors, unsigned long count, const struct timespec *timeout, const void *mask)
{
	struct timespec longer;

	if (timeout) {
		long wait = (timeout->seconds * SECOND + timeout->nanoseconds) * times_slower();

		longer.seconds = wait / SECOND;
		longer.nanoseconds = wait % SECOND;
	}
	return syscall(SYS_PPOLL, descriptors, count, timeout ? &longer : 0, mask, 8);
}

int __ppoll_chk(void *descriptors, unsigned long count, const struct timespec *timeout, const void *mask,
		unsigned long size)
{
	(void)size;
	return ppoll(descriptors, count, timeout, mask);
}
