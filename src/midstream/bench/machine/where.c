// SPDX-License-Identifier: MIT
/* A plug-in for QEMU: counts the guest's instructions by the address of the block that they are in. The table is a
 * file that others map, named by the environment variable WHERE; it is full of zeros at first. See count.c.
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
	struct place *place = find(qemu_plugin_tb_vaddr(block));

	(void)id;
	qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &place->instructions, qemu_plugin_tb_n_insns(block));
}

__attribute__((visibility("default"))) int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	const char *path = getenv("WHERE");
	int file = path ? open(path, O_RDWR) : -1;

	(void)info, (void)argc, (void)argv;
	if (file < 0)
		return 1;
	places = mmap(0, PLACES * sizeof(*places), READ_WRITE, MAP_SHARED, file, 0);
	if (places == (void *)-1)
		return 1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
