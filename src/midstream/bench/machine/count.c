// SPDX-License-Identifier: MIT
/* A plug-in for QEMU: counts the guest's instructions in a file that others map (docs/devel/tcg-plugins in QEMU's
 * tree). The file is named by the environment variable COUNT and begins with a u64; the rest of it is slow.c's.
 *
 * Without QEMU's header, which its Debian package does not bring: these are version 1 of that interface, as in
 * QEMU 7.2.
 */
#include <stddef.h>
#include <stdint.h>

struct qemu_plugin_tb;

extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
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

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

static uint64_t *counter;

static void translated(uint64_t id, struct qemu_plugin_tb *block)
{
	(void)id;
	qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, counter, qemu_plugin_tb_n_insns(block));
}

__attribute__((visibility("default"))) int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	const char *path = getenv("COUNT");
	int file = path ? open(path, O_RDWR) : -1;

	(void)info, (void)argc, (void)argv;
	if (file < 0)
		return 1;
	counter = mmap(0, sizeof(*counter), READ_WRITE, MAP_SHARED, file, 0);
	if (counter == (void *)-1)
		return 1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
