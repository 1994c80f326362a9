/* SPDX-License-Identifier: GPL-2.0-only */
/* The payload's way into a record, and its sum on the way. */
#ifndef MIDSTREAM_COPY_H
#define MIDSTREAM_COPY_H

#include "bpf.h"
#include "checksum.h"
#include "marked.h"
#include "record.h"
#include "settings.h"

/* The payload is summed in blocks of so many bytes, and records have room for whole ones. */
#define BLOCK 64u
#define STRIDE 512u /* bytes between two jumps, where the length is known beforehand */
#define EXACT_LEAST 8u
#define BLOCKS(length) (((length) + BLOCK - 1) & ~(BLOCK - 1))

/* The payload into the record, and its sum. The last block is cleared first, so that the sum can be
 * taken block by block.
 */
static __always_inline bool copy(struct xdp_md *ctx, const struct packet *p, struct record *record,
				 const __u32 capacity, __u64 *sum)
{
	__u32 last = p->length - 1, last_block;
	__u64 *tail;

	/* The verifier of 6.1 forgets that a length is not 0; of a masked value plus one it knows it. */
	barrier_var(last);
	last &= 0xfff;
	last_block = last & ~(BLOCK - 1);
	barrier_var(last_block);
	if (last_block > capacity - BLOCK)
		return false;
	tail = (void *)(record->payload + last_block);
	for (__u32 i = 0; i < BLOCK / 8; i++)
		tail[i] = 0;
	barrier_var(last);
	if (last >= capacity || bpf_xdp_load_bytes(ctx, p->payload_offset, record->payload, last + 1))
		return false;
	barrier_var(last); /* else the compiler would drop one of the two bounds, and a verifier miss it */
	for (__u32 block = 0; settings.check && block < capacity; block += BLOCK) {
		if (block > last)
			break;
		*sum += sum_of_words(record->payload + block, BLOCK / 4);
	}
	return true;
}

/* Words of the payload into the record, and the two halves of each to two sums: no carry is lost, for what
 * of `all` went beyond 64 bits is known from `high`.
 */
struct sums {
	__u64 all;  /* of the words */
	__u64 high; /* of their upper halves */
};

static __always_inline void copy_word(__u64 *to, __u64 word, struct sums *sums)
{
	*to = word;
	/* The compiler would add the sum to a copy of the word, an instruction more, and keep words for later that
	 * it has no registers for.
	 */
	asm volatile("%[all] += %[word]\n"
		     "%[word] >>= 32\n"
		     "%[high] += %[word]"
		     : [all] "+r"(sums->all), [high] "+r"(sums->high), [word] "+r"(word));
}

static __always_inline void copy_words(void *to, const void *from, const __u32 words, struct sums *sums)
{
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < words; i++)
		copy_word((__u64 *)to + i, ((const __u64 *)from)[i], sums);
}

/* As copy(), of a payload of at least EXACT_LEAST bytes, whose length is known when this is compiled, or when it is
 * loaded: nothing is left to be decided, and copying and summing up take five instructions for eight bytes. A helper that only copies is no faster,
 * so the sum is made whether it is asked for or not.
 */
static __always_inline bool copy_exactly(struct xdp_md *ctx, const struct packet *p, struct record *record,
					 const __u32 length, __u64 *sum)
{
	const __u32 strides = length < 2 * STRIDE ? 0 : length / STRIDE; /* no loop for one round */
	const __u32 rest = length - strides * STRIDE;
	const void *end = (void *)(long)ctx->data_end, *from;
	__u32 offset = p->payload_offset;
	void *to = record->payload;
	struct sums sums = {};

	offset &= 0x7f; /* at most 14 + 20 + 60 bytes of headers, which the verifier does not know any more */
	from = (void *)p->headers + offset;
	barrier_var(from); /* one pointer, whose bound the verifier knows, and not another sum of the same two */
	if (from + length > end)
		return false;
	if (length % 8) { /* what of the last eight bytes is in no word of eight */
		__u64 last = *(const __u64 *)(from + length - 8) >> (64 - length % 8 * 8);

		copy_word(to + length / 8 * 8, last, &sums);
	}
#pragma clang loop unroll(disable)
	for (__u32 left = strides; left; left--) {
		copy_words(to, from, STRIDE / 8, &sums);
		/* Both move on. Of an index the compiler makes one that begins below 0, and verifiers from Linux 7.2 on
		 * refuse a pointer that is out of its bounds between two instructions.
		 */
		to += STRIDE;
		from += STRIDE;
		barrier_var(to);
		barrier_var(from);
		barrier_var(left);
	}
#pragma clang loop unroll(full)
	for (__u32 part = STRIDE; part >= 8; part /= 2) {
		if (!(rest & part))
			continue;
		copy_words(to, from, part / 8, &sums);
		to += part;
		from += part;
	}
	*sum = sums.all - (sums.high << 32) + sums.high;
	return true;
}

#endif
