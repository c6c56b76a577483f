# A guest in real mode that does verified I/O on one disk for ever, by the BIOS's extended reads and writes.
#
# It cares for SLOTS blocks of 4 KiB, STRIDE sectors apart. Each step takes one at random, reads it back if it wrote it
# before, compares every byte, and writes the block's next generation. What it expects is a generation number a slot,
# kept in its memory, which a live migration takes along: the first reads after one check what was written before it.
# On the serial port a dot is a step; a line "IOS=h ERR=h BAD=h" (verified reads and writes, refusals, wrong blocks)
# comes every 64 steps and after each mishap.
#
# First sector: loader and parameters, which weir-lab fills in. 0x9000: what is written or expected. 0xa000: what was
# read. Segment 0x2000: generations, 0 = never written.
.code16
.globl _start
_start:
    ljmp $0, $1f
1:  xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    cld
    sti
    mov $rest, %si
    mov $0x42, %ah
    int $0x13
    jnc main
dead:
    hlt
    jmp dead
rest:
    .byte 16, 0
    .word 3
    .word 0x7e00, 0
    .long 1, 0

.org 384
    .ascii "WEIRGST1"
first:      .quad 0
stride:     .long 0
slots:      .long 0
drive:      .byte 0x81

.org 510
    .word 0xaa55

main:
    mov $0x2000, %ax
    mov %ax, %fs
    mov %ax, %es
    xor %eax, %eax
    xor %di, %di
    mov $0x4000, %cx
    rep stosl
    mov %ax, %es

step:
    mov seed, %eax
    imul $1664525, %eax
    add $1013904223, %eax
    mov %eax, seed
    shr $8, %eax
    xor %edx, %edx
    divl slots
    mov %edx, slot
    mov %edx, %eax
    mull stride
    add first, %eax
    adc first+4, %edx
    mov %eax, lba
    mov %edx, lba+4
    call entry
    mov %fs:(%bx), %ax
    mov %ax, gen
    test %ax, %ax
    jz write

    mov $0x4200, %ax
    mov $0xa000, %di
    call transfer
    jc read_failed
    call pattern
    mov $0x9000, %si
    mov $0xa000, %di
    mov $1024, %cx
    repe cmpsl
    jne wrong
    incl ios
    jmp write
read_failed:
    incl errors
    call report
    jmp write
wrong:
    incl bad
    call report

write:
    incw gen
    jnz 1f
    incw gen
1:  call pattern
    mov $0x4300, %ax
    mov $0x9000, %di
    call transfer
    call entry
    jc write_failed
    mov gen, %ax
    mov %ax, %fs:(%bx)
    incl ios
    jmp next
write_failed:
    # Either generation may be on the disk now: nothing can be expected of it.
    movw $0, %fs:(%bx)
    incl errors
    call report
next:
    mov $'.', %al
    call putc
    incl steps
    testb $63, steps
    jnz step
    call report
    jmp step

# bx: where the slot's generation is. Keeps the carry.
entry:
    mov slot, %ebx
    lea (%ebx,%ebx), %ebx
    ret

# ax: BIOS function; di: buffer. Carry: it failed.
transfer:
    movw $8, count
    mov %di, offset
    mov $packet, %si
    mov drive, %dl
    int $0x13
    ret

# The 4 KiB that slot and gen determine, at 0x9000.
pattern:
    mov slot, %eax
    shl $16, %eax
    mov gen, %ax
    imul $2654435761, %eax
    mov $0x9000, %di
    mov $1024, %cx
1:  stosl
    imul $1664525, %eax
    add $1013904223, %eax
    loop 1b
    ret

report:
    mov $text_ios, %si
    mov ios, %eax
    call field
    mov $text_errors, %si
    mov errors, %eax
    call field
    mov $text_bad, %si
    mov bad, %eax
    call field
    mov $'\n', %al
    jmp putc

# si: text, ended by 0; eax: number, printed in 8 hexadecimal digits.
field:
    mov %eax, %ebp
1:  lodsb
    test %al, %al
    jz 2f
    call putc
    jmp 1b
2:  mov $8, %cx
3:  rol $4, %ebp
    mov %ebp, %eax
    and $15, %al
    add $'0', %al
    cmp $'9', %al
    jbe 4f
    add $7, %al
4:  call putc
    loop 3b
    ret

putc:
    push %dx
    push %ax
    mov $0x3fd, %dx
1:  in %dx, %al
    test $0x20, %al
    jz 1b
    pop %ax
    mov $0x3f8, %dx
    out %al, %dx
    pop %dx
    ret

text_ios:       .asciz "\nIOS="
text_errors:    .asciz " ERR="
text_bad:       .asciz " BAD="
.balign 4
seed:       .long 1
slot:       .long 0
steps:      .long 0
ios:        .long 0
errors:     .long 0
bad:        .long 0
gen:        .word 0
.balign 4
packet:
    .byte 16, 0
count:      .word 8
offset:     .word 0, 0
lba:        .quad 0
.org 2048
