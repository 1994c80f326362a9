// SPDX-License-Identifier: MIT
/* A plug-in for QEMU: counts the guest's instructions in a file that others map (docs/devel/tcg-plugins in QEMU's
 * tree). The file is named by the environment variable COUNT and begins with a u64; the rest of it is slow.c's. If
 * WHERE names another, full of zeros, it becomes a table of them by the address of the block that they are in.
 *
 * Without QEMU's header, which its Debian package does not bring: these are version 1 of that interface, as in
 * QEMU 7.2.
 */
#include <stddef.h>
#include <stdint.h>

struct qemu_plugin_tb;

extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *block);
extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*call)(uint64_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, int operation, void *counter,
						     uint64_t amount);
extern char *getenv(const char *name);
extern int open(const char *path, int flags, ...);
extern void *mmap(void *address, size_t length, int protection, int flags, int file, long offset);

#define ADD_U64 0
#define O_RDWR 2
#define READ_WRITE 3
#define MAP_SHARED 1

#define PLACES (1u << 21) /* as in hardworker.py */

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

static uint64_t *counter;

static struct place {
	uint64_t address, instructions;
} *places;

/* The place of a block; a block may be translated many times. */
static struct place *find(uint64_t address)
{
	uint64_t at = (address * 0x9e3779b97f4a7c15ull) >> 43; /* 21 bits */

	while (places[at].address && places[at].address != address)
		at = (at + 1) % PLACES;
	places[at].address = address;
	return &places[at];
}

static void translated(uint64_t id, struct qemu_plugin_tb *block)
{
	size_t count = qemu_plugin_tb_n_insns(block);

	(void)id;
	qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, counter, count);
	if (places)
		qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64,
							 &find(qemu_plugin_tb_vaddr(block))->instructions, count);
}

/* The file that an environment variable names, or 0. */
static void *mapped(const char *name, size_t size)
{
	const char *path = getenv(name);
	int file = path ? open(path, O_RDWR) : -1;
	void *memory = file < 0 ? (void *)-1 : mmap(0, size, READ_WRITE, MAP_SHARED, file, 0);

	return memory == (void *)-1 ? 0 : memory;
}

__attribute__((visibility("default"))) int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	(void)info, (void)argc, (void)argv;
	counter = mapped("COUNT", sizeof(*counter));
	places = mapped("WHERE", PLACES * sizeof(*places));
	if (!counter || (getenv("WHERE") && !places))
		return 1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
