// SPDX-License-Identifier: MIT
/* Slow motion for QEMU: its clocks run at a fraction of their speed, and the guest's keeps step with this machine's.
 *
 * While a virtual core is idle, QEMU lets the guest's clock follow this machine's; while it executes, the clock counts
 * instructions, and emulating them takes longer than the guest is told. So a guest that works falls behind, and a
 * load that is sent by this machine's clock comes too fast for it. With slower clocks, and a load as much slower, the
 * guest is told no less than it takes. Where it was told more, the clocks stand still while it is idle until it is
 * even: however slow, it gets the load at the rate that it is to have.
 *
 * Preloaded (LD_PRELOAD) into QEMU. The file of count.c, named by the environment variable COUNT, has two more words:
 * how many times slower, 1 to 64, at any time another, and the nanoseconds that an instruction takes.
 *
 * Without a C library's headers, which the machine may not have; its functions are there when QEMU runs.
 */
struct timespec {
	long seconds, nanoseconds;
};

extern long syscall(long number, ...);
extern char *getenv(const char *name);
extern int open(const char *path, int flags, ...);
extern void *mmap(void *address, unsigned long length, int protection, int flags, int file, long offset);

#if defined(__x86_64__)
#define SYS_CLOCK_GETTIME 228
#define SYS_PPOLL 271
#define SYS_SCHED_YIELD 24
#elif defined(__aarch64__)
#define SYS_CLOCK_GETTIME 113
#define SYS_PPOLL 73
#define SYS_SCHED_YIELD 124
#else
#error "the numbers of clock_gettime(2), ppoll(2) and sched_yield(2) are not known for this machine"
#endif

#define SECOND 1000000000l
#define MILLISECOND 1000000l
#define REALTIME 0
#define MONOTONIC 1
#define O_RDWR 2
#define READ_WRITE 3
#define MAP_SHARED 1

#define SLOWEST 64
#define LONGEST (50 * MILLISECOND) /* of a wait, by this machine's clock: so soon another speed is heeded */
#define ARREARS MILLISECOND	   /* of the guest's clock, that may be made up for later; more is lost */

struct shared {
	volatile unsigned long instructions, slow, nanoseconds;
};

static struct shared none = { 0, 1, 0 };
static struct shared *shared;
static int locked; /* QEMU has several threads; what follows is under this lock */

static long read_now;	   /* this machine's clock when it was last read */
static long told;	   /* the clock that QEMU is told */
static long realtime;	   /* the time of day less that clock */
static long rest;	   /* of a division, carried on */
static long ahead;	   /* the guest's clock is, of the one that it is to keep step with */
static unsigned long done; /* instructions, then */

static void map_shared(void)
{
	const char *path = getenv("COUNT");
	int file = path ? open(path, O_RDWR) : -1;
	struct shared *found = file < 0 ? (void *)-1 : mmap(0, sizeof(*found), READ_WRITE, MAP_SHARED, file, 0);

	shared = found == (void *)-1 ? &none : found;
}

static long times_slower(void)
{
	long slow = shared->slow;

	return slow < 1 ? 1 : slow > SLOWEST ? SLOWEST : slow;
}

static long now(int clock)
{
	struct timespec time;

	syscall(SYS_CLOCK_GETTIME, clock, &time);
	return time.seconds * SECOND + time.nanoseconds;
}

/* QEMU reads its clock when the guest goes idle and when that ends: between two readings it either worked or did not. */
static void advance(void)
{
	long passed, slow = times_slower(), time = now(MONOTONIC);
	unsigned long executed = shared->instructions;

	if (!read_now) {
		told = read_now = time;
		realtime = now(REALTIME) - time;
		done = executed;
	}
	passed = (time - read_now + rest) / slow;
	rest = (time - read_now + rest) % slow;
	read_now = time;
	if (executed != done) {
		ahead += (long)((executed - done) * shared->nanoseconds) - passed;
		if (ahead < -ARREARS)
			ahead = -ARREARS;
		done = executed;
	} else if (ahead > 0) {
		long still = ahead < passed ? ahead : passed;

		ahead -= still;
		passed -= still;
	}
	told += passed;
}

int clock_gettime(int clock, struct timespec *time)
{
	long value;

	if (clock != REALTIME && clock != MONOTONIC)
		return syscall(SYS_CLOCK_GETTIME, clock, time);
	while (__atomic_exchange_n(&locked, 1, __ATOMIC_ACQUIRE))
		syscall(SYS_SCHED_YIELD);
	if (!shared)
		map_shared();
	advance();
	value = clock == REALTIME ? told + realtime : told;
	__atomic_store_n(&locked, 0, __ATOMIC_RELEASE);
	time->seconds = value / SECOND;
	time->nanoseconds = value % SECOND;
	return 0;
}

int ppoll(void *descriptors, unsigned long count, const struct timespec *timeout, const void *mask)
{
	struct timespec longer = { 0, LONGEST };

	if (timeout && shared && !timeout->seconds && timeout->nanoseconds < LONGEST / times_slower())
		longer.nanoseconds = timeout->nanoseconds * times_slower();
	return syscall(SYS_PPOLL, descriptors, count, &longer, mask, 8);
}

int __ppoll_chk(void *descriptors, unsigned long count, const struct timespec *timeout, const void *mask,
		unsigned long size)
{
	(void)size;
	return ppoll(descriptors, count, timeout, mask);
}
